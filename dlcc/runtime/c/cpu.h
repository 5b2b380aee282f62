/* What the CPU must have. An architecture's file defines
 *
 *   int dlcc_cpu_has(const char *feature)    1 or 0; -1 if the name is unknown
 *   int dlcc_cpu_varies(const char *feature) 1 if threads may differ in having it
 *   int dlcc_cpu_permit(const char *feature) 0 once the system lets this process use it
 *   const char *dlcc_cpu_level(void)         the best --target without permits this CPU runs
 *   void dlcc_cpu_relax(void)                the hint for a spinning loop
 *   uint32_t dlcc_cpu_float_enter(void)      sets the default float environment of this thread
 *   void dlcc_cpu_float_leave(uint32_t)      restores what dlcc_cpu_float_enter returned */
#ifndef DLCC_CPU_H
#define DLCC_CPU_H

#if defined(__x86_64__)
#include "cpu_x86_64.h"
#elif defined(__aarch64__)
#include "cpu_aarch64.h"
#elif defined(__arm__)
#include "cpu_armv7.h"
#else
#error "dlcc's runtime knows no CPU feature check for this architecture"
#endif

#endif
