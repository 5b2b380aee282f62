/* What the board says of itself, as JSON. */
#ifndef DLCC_SERVER_BOARD_H
#define DLCC_SERVER_BOARD_H

#include <ctype.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "build.h"
#include "features.h"
#include "frame.h"

enum { BOARD_BYTES = 1 << 14, LINE_BYTES = 1 << 13 };

typedef struct board {
  char text[BOARD_BYTES];
  size_t used;
  int full;
} board;

static void board_character(board *b, char c) {
  if (b->used + 1 < sizeof b->text)
    b->text[b->used++] = c;
  else
    b->full = 1;
}

static void board_raw(board *b, const char *text) {
  for (; *text != '\0'; text++) board_character(b, *text);
}

/* What is not plain ASCII becomes a question mark: names of boards are no place for control
 * characters. */
static void board_string(board *b, const char *text) {
  board_character(b, '"');
  for (; *text != '\0'; text++) {
    if (*text == '"' || *text == '\\') board_character(b, '\\');
    board_character(b, *text >= 0x20 && *text < 0x7f ? *text : '?');
  }
  board_character(b, '"');
}

static void board_key(board *b, const char *key) {
  if (b->used > 1) board_raw(b, ", ");
  board_string(b, key);
  board_raw(b, ": ");
}

static void board_text(board *b, const char *key, const char *value) {
  board_key(b, key);
  board_string(b, value);
}

static void board_number(board *b, const char *key, uint64_t value) {
  char digits[24];
  snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
  board_key(b, key);
  board_raw(b, digits);
}

static char *trimmed(char *text) {
  size_t size = strlen(text);
  while (size > 0 && isspace((unsigned char)text[size - 1])) text[--size] = '\0';
  while (isspace((unsigned char)*text)) text++;
  return text;
}

/* The first line of a file of the kernel's, if it can be read. */
static void board_file(board *b, const char *key, const char *path) {
  char line[LINE_BYTES];
  FILE *file = fopen(path, "re");
  if (file == NULL) return;
  if (fgets(line, sizeof line, file) != NULL) board_text(b, key, trimmed(line));
  fclose(file);
}

/* Lines of /proc/cpuinfo: the CPU's name, and on ARM implementer and part of each core. */
static void board_cpuinfo(board *b) {
  char line[LINE_BYTES], name[LINE_BYTES] = "", implementer[16] = "";
  int cores = 0;
  FILE *file = fopen("/proc/cpuinfo", "re");
  if (file == NULL) return;
  board_key(b, "cores");
  board_character(b, '[');
  while (fgets(line, sizeof line, file) != NULL) {
    char *colon = strchr(line, ':');
    if (colon == NULL) continue;
    *colon = '\0';
    const char *key = trimmed(line), *value = trimmed(colon + 1);
    if (strcmp(key, "model name") == 0 || strcmp(key, "Hardware") == 0) {
      snprintf(name, sizeof name, "%s", value);
    } else if (strcmp(key, "CPU implementer") == 0) {
      snprintf(implementer, sizeof implementer, "%s", value);
    } else if (strcmp(key, "CPU part") == 0) {
      char both[64];
      snprintf(both, sizeof both, "%s:%.16s", implementer, value);
      if (cores++ > 0) board_raw(b, ", ");
      board_string(b, both);
    }
  }
  fclose(file);
  board_character(b, ']');
  board_text(b, "cpu", name);
}

static void board_features(board *b) {
  int told = 0;
  board_key(b, "features");
  board_character(b, '[');
  for (size_t i = 0; i < sizeof dlcc_cpu_features / sizeof *dlcc_cpu_features; i++) {
    const char *name = dlcc_cpu_features[i].name;
    if (name == NULL || dlcc_cpu_has(name) != 1) continue;
    if (told++ > 0) board_raw(b, ", ");
    board_string(b, name);
  }
  board_character(b, ']');
}

static void board_clock(board *b) {
#define CPUFREQ "/sys/devices/system/cpu/cpu0/cpufreq/"
  board_file(b, "governor", CPUFREQ "scaling_governor");
  board_file(b, "kilohertz", CPUFREQ "scaling_cur_freq");
  board_file(b, "most_kilohertz", CPUFREQ "cpuinfo_max_freq");
#undef CPUFREQ
}

static int usable_cpus(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* `seconds`: the limit of one request. `megabytes`: that of what a client may store. */
static void board_describe(board *b, uint64_t seconds, uint64_t megabytes) {
  struct utsname name;
  char system[2 * sizeof name.sysname + 1] = "unknown";
  b->used = 0;
  b->full = 0;
  board_character(b, '{');
  board_text(b, "server", SERVER_VERSION);
  board_text(b, "architecture", SERVER_ARCHITECTURE);
  if (uname(&name) == 0) snprintf(system, sizeof system, "%s %s", name.sysname, name.release);
  board_text(b, "system", system);
  board_file(b, "machine", "/proc/device-tree/model");
  board_cpuinfo(b);
  board_features(b);
  board_number(b, "hwcap", getauxval(AT_HWCAP));
  board_number(b, "hwcap2", getauxval(AT_HWCAP2));
  board_number(b, "cpus", (uint64_t)usable_cpus());
  board_number(b, "memory_bytes",
               (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
  board_clock(b);
  board_number(b, "seconds", seconds);
  board_number(b, "megabytes", megabytes);
  board_character(b, '}');
  b->text[b->used] = '\0';
}

#endif
