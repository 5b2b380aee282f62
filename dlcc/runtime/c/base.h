/* What the runtimes of all machines include. */
#ifndef DLCC_BASE_H
#define DLCC_BASE_H

#ifndef _GNU_SOURCE
#error "the runtime must be compiled with -D_GNU_SOURCE"
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DLCC_ALIGNMENT 64
#define DLCC_API __attribute__((visibility("default")))

#endif
