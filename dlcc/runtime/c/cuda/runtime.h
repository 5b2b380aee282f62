/* The runtime of a network that is compiled for NVIDIA GPUs, included instead of ../runtime.h by a
 * file that defines the same macros. It needs the GPU's driver, which it loads when an instance is
 * made, and no library of CUDA's toolkit. */
#ifndef DLCC_CUDA_RUNTIME_H
#define DLCC_CUDA_RUNTIME_H

#include "../base.h"

#include <dlfcn.h>

#include "steps.h"

#include "../error.h"

#include "../os.h"

#include "../cpu.h"

#include "driver.h"

#include "device.h"

#include "../variant.h"

#include "../shapes.h"

#include "../memory.h"

#include "../weights.h"

#include "resident.h"

#include "../call.h"

#include "graph.h"

#include "instance.h"

#include "../public.h"

#include "run.h"

#endif
