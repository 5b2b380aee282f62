/* network.c, for libraries of macOS. */
#include <dlfcn.h>

#include "macos.h"

#define dlopen macos_dlopen
#define dlsym macos_dlsym
#define dlerror macos_dlerror
#include "network.c"
