/* The runtime of a compiled network, included by a generated file that defines the names of
 * tables.h and
 *
 *   DLCC_EMBEDDED  1 if the weights file is part of the library
 *   DLCC_PARTS     1 if variants read parts of the weights file
 *   DLCC_PACKED    1 if the weights file is packed
 *   DLCC_SINGLE    1 if the library runs on one thread only
 *
 * Everything but the public functions is static. */
#ifndef DLCC_RUNTIME_H
#define DLCC_RUNTIME_H

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

#include "tables.h"

#include "error.h"

#include "os.h"

#include "cpu.h"

#include "variant.h"

#include "memory.h"

#include "weights.h"

#include "pool.h"

#include "instance.h"

#endif
