#include <stddef.h>
#include <stdint.h>

_Noreturn void leave(int status);
void say(const char *text);
void say_number(const char *name, uint32_t value);
uint32_t create(const char *name, uint32_t length);
void write(uint32_t file, const void *data, uint32_t bytes);
void clock_start(void);
uint32_t clock_ticks(void);
void *memset(void *to, int value, size_t bytes);
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
