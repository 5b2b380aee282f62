/* The runtime of a compiled network, included by a generated file that defines the names of
 * tables.h and
 *
 *   DLCC_EMBEDDED  1 if the weights file is part of the library
 *   DLCC_PARTS     1 if schedules read parts of the weights file
 *   DLCC_PACKED    1 if the weights file is packed
 *   DLCC_SINGLE    1 if the library runs on one thread only
 *
 * Everything but the public functions is static. */
#ifndef DLCC_RUNTIME_H
#define DLCC_RUNTIME_H

#include "base.h"

#include "steps.h"

#include "error.h"

#include "os.h"

#include "cpu.h"

#include "machine.h"

#include "variant.h"

#include "shapes.h"

#include "memory.h"

#include "weights.h"

#include "pool.h"

#include "call.h"

#include "instance.h"

#include "public.h"

#endif
