/* The weights file: a 64-byte header, and the content with zeros up to a multiple of 64 bytes
 * (format 1) or streams to unpack it from with zeros up to a multiple of 8 (format 2).
 *
 *   0  8 bytes  "DLCCWTS\0"
 *   8  uint32   version, 1 or 2
 *  12  uint32   bytes of this header: where the content starts
 *  16  uint64   bytes of the content
 *  24  uint64   bytes of the file
 *  32  uint64   hash of what follows the header
 *  40  uint64   fingerprint of the network it belongs to
 *  48  uint64   format 2: hash of the content with zeros up to a multiple of 64 bytes; else zero
 *  56  uint64   zero
 *
 * All little-endian. dlcc/artifact/weights.py and packed.py write it. */
#ifndef DLCC_WEIGHTS_H
#define DLCC_WEIGHTS_H

typedef struct dlcc_weights_header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint64_t content_bytes;
  uint64_t file_bytes;
  uint64_t content_hash;
  uint64_t fingerprint;
  uint64_t unpacked_hash;
  uint64_t zero;
} dlcc_weights_header;

_Static_assert(sizeof(dlcc_weights_header) == DLCC_ALIGNMENT, "the header is one cache line");

typedef struct dlcc_weights {
  const char *content;
  void *unpacked; /* NULL unless the file is packed */
  void *mapping;  /* NULL if embedded, or if the file is packed and has been read */
  size_t mapping_bytes;
  uint32_t schedule; /* number of the one that reads them */
} dlcc_weights;

/* Sum over the 64-bit words of a bijective mix of word and position: one changed word always
 * changes it, and numpy computes it as fast as C. */
static uint64_t dlcc_hash_part(const char *content, uint64_t from, uint64_t to) {
  uint64_t sum = to - from, key = from / 8 * UINT64_C(0x9e3779b97f4a7c15);
  for (uint64_t at = from; at < to; at += 8) {
    uint64_t word;
    memcpy(&word, content + at, 8);
    key += UINT64_C(0x9e3779b97f4a7c15);
    word += key;
    word ^= word >> 32;
    word *= UINT64_C(0xd6e8feb86659fd93);
    word ^= word >> 32;
    sum += word;
  }
  return sum;
}

#if !DLCC_PARTS
static uint64_t dlcc_hash(const char *content, uint64_t bytes) {
  return dlcc_hash_part(content, 0, bytes);
}
#endif

/* Whether the content has the hash that it should have: what the schedule reads of it, so that the
 * pages of others are never touched. */
static int dlcc_weights_intact(const dlcc_weights *weights, const char *content, uint64_t bytes,
                               uint64_t hash) {
#if DLCC_PARTS
  const dlcc_reading *reading = &dlcc_readings[weights->schedule];
  uint64_t sum = 0;
  (void)bytes, (void)hash;
  for (const dlcc_part_of *part = reading->parts; part->to > 0; part++)
    sum += dlcc_hash_part(content, part->from, part->to);
  return sum == reading->hash;
#else
  (void)weights;
  return dlcc_hash(content, bytes) == hash;
#endif
}

static dlcc_status dlcc_weights_verify(const dlcc_weights *weights, const char *image,
                                       const char *path) {
  const dlcc_status bad = DLCC_CODE(BAD_WEIGHTS);
  const dlcc_info *info = &dlcc_model_info;
  dlcc_weights_header header;
  memcpy(&header, image, sizeof header);
  if (memcmp(header.magic, "DLCCWTS", 8) != 0)
    return dlcc_fail(bad, "%s is not a dlcc weights file", path);
  if (header.version != DLCC_PACKED + 1)
    return dlcc_fail(bad, "%s has weights format %u, this library reads format %d", path,
                     (unsigned)header.version, DLCC_PACKED + 1);
  if (header.fingerprint != info->fingerprint)
    return dlcc_fail(bad, "%s belongs to another network or another compilation than this library",
                     path);
#if DLCC_PACKED
  const int fits = header.content_bytes == dlcc_packed.content;
#else
  const uint64_t rest = header.file_bytes - sizeof header; /* held against the library below */
  const int fits = header.content_bytes <= rest && rest - header.content_bytes < DLCC_ALIGNMENT &&
                   header.unpacked_hash == 0;
#endif
  if (header.header_bytes != sizeof header || header.file_bytes != info->weights_bytes || !fits ||
      header.zero != 0)
    return dlcc_fail(bad, "%s is corrupt: its header contradicts the library", path);
  if (!dlcc_weights_intact(weights, image + sizeof header, header.file_bytes - sizeof header,
                           header.content_hash))
    return dlcc_fail(bad, "%s is corrupt: the hash of its content is wrong", path);
  return DLCC_CODE(OK);
}

static void dlcc_weights_unmap(dlcc_weights *weights) {
  if (weights->mapping != NULL) munmap(weights->mapping, weights->mapping_bytes);
  weights->mapping = NULL;
}

#if DLCC_PACKED
#include "packed.h"
#endif

/* Checks an image and takes the content from it. */
static dlcc_status dlcc_weights_use(dlcc_weights *weights, const char *image, const char *path) {
  dlcc_status status = dlcc_weights_verify(weights, image, path);
  if (status != DLCC_CODE(OK)) return status;
#if DLCC_PACKED
  status = dlcc_weights_unpack(weights, image, path);
  dlcc_weights_unmap(weights);
  return status;
#else
  weights->content = image + sizeof(dlcc_weights_header);
  return status;
#endif
}

static dlcc_status dlcc_weights_map(dlcc_weights *weights, const char *path) {
  const dlcc_status bad = DLCC_CODE(BAD_WEIGHTS);
  const uint64_t expected = dlcc_model_info.weights_bytes;
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0)
    return dlcc_fail(bad, "cannot open the weights file %s: %s", path, dlcc_system_reason(errno));
  struct stat facts;
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    close(file);
    return dlcc_fail(bad, "%s is not a regular file", path);
  }
  if ((uint64_t)facts.st_size != expected) {
    close(file);
    return dlcc_fail(bad, "%s has %llu bytes where %llu are expected: truncated or another model's",
                     path, (unsigned long long)facts.st_size, (unsigned long long)expected);
  }
  void *mapping = mmap(NULL, (size_t)expected, PROT_READ, MAP_PRIVATE, file, 0);
  const int reason = errno;
  close(file);
  if (mapping == MAP_FAILED)
    return dlcc_fail(bad, "cannot map the weights file %s: %s", path, dlcc_system_reason(reason));
  weights->mapping = mapping;
  weights->mapping_bytes = (size_t)expected;
  return dlcc_weights_use(weights, mapping, path);
}

static dlcc_status dlcc_weights_open(dlcc_weights *weights, const char *path) {
#if DLCC_EMBEDDED
  if (path == NULL)
    return dlcc_weights_use(weights, DLCC_NAME(weights_image), "the embedded copy of the weights");
#endif
  return dlcc_weights_map(weights, path ? path : dlcc_model_info.weights_file);
}

static void dlcc_weights_close(dlcc_weights *weights) {
  dlcc_weights_unmap(weights);
  free(weights->unpacked);
}

#endif
