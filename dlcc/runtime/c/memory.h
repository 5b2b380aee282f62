/* Memory of an instance. */
#ifndef DLCC_MEMORY_H
#define DLCC_MEMORY_H

/* Zeroed memory of `bytes` bytes for `what`. Huge pages spare large areas most of their TLB misses;
 * the zeroing also makes sure that no run pays for the first touch of a page. */
static dlcc_status dlcc_allocate(void **memory, uint64_t needed, const char *what) {
  const size_t huge_page = (size_t)2 << 20;
  const size_t alignment = needed >= huge_page ? huge_page : DLCC_ALIGNMENT;
  const size_t bytes = needed > 0 ? (size_t)needed : 1;
  if (posix_memalign(memory, alignment, bytes) != 0) {
    *memory = NULL;
    return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for %s of %llu bytes", what,
                     (unsigned long long)needed);
  }
  if (alignment == huge_page) dlcc_huge_pages(*memory, bytes);
  memset(*memory, 0, bytes);
  return DLCC_CODE(OK);
}

#endif
