/* Device memory: pages of the host between two that nobody may touch. */
#ifndef DLCC_EMULATOR_MEMORY_H
#define DLCC_EMULATOR_MEMORY_H

#include <stddef.h>
#include <stdint.h>

int memory_allocate(uint64_t *memory, size_t bytes, int device);
int memory_free(uint64_t memory);
/* The device that [address, address + bytes] belongs to; -1: none. */
int memory_device(uint64_t address, size_t bytes);
/* 0, or the error that somebody wrote behind the end of an allocation. */
int memory_check(void);
uint64_t memory_count(void);

#endif
