/* What the runtime asks of the operating system. A system's file defines
 *
 *   DLCC_LINE                        bytes that caches of different cores pass on at once
 *   dlcc_word                        a number `value` that threads can sleep on
 *   dlcc_word_open(word)             before the first use, _close after the last
 *   dlcc_word_wait(word, value)      sleeps while it has that value, or shorter
 *   dlcc_word_wake(word, threads)    to be called after a change
 *   dlcc_huge_pages(memory, bytes)   asks for large pages
 *   dlcc_now()                       nanoseconds of a clock that is never set
 *   dlcc_cpu_count()                 CPUs that threads of this process may run on at once
 *   DLCC_MOST_CPUS                   that dlcc_cpus_choose can give
 *   dlcc_cpus_choose(workers, cpus, chosen)  a CPU for each worker: those the caller wants, if this
 *                                    thread may run there; NULL: others than the one it is on
 *   dlcc_thread_bind(thread, cpu)    binds a thread to one of these */
#ifndef DLCC_OS_H
#define DLCC_OS_H

#if defined(__linux__)
#include "os_linux.h"
#elif defined(__APPLE__)
#include "os_darwin.h"
#else
#error "dlcc's runtime does not know this operating system"
#endif

#endif
