/* The CPU's features, by the table that the runtime of a network checks itself against. */
#ifndef DLCC_SERVER_FEATURES_H
#define DLCC_SERVER_FEATURES_H

#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wunused-function" /* the server needs one of theirs */

#if defined(__x86_64__)
#include "cpu_x86_64.h"
#define SERVER_ARCHITECTURE "x86_64"
#define SERVER_ELF_MACHINE 62
#elif defined(__aarch64__)
#include "cpu_aarch64.h"
#define SERVER_ARCHITECTURE "aarch64"
#define SERVER_ELF_MACHINE 183
#elif defined(__arm__)
#include "cpu_armv7.h"
#define SERVER_ARCHITECTURE "armv7"
#define SERVER_ELF_MACHINE 40
#else
#error "dlcc's runtime knows no CPU feature check for this architecture"
#endif

#endif
