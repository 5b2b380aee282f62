/* SHA-256 (FIPS 180-4) and HMAC with it (RFC 2104): the proof that a client knows the token. */
#ifndef DLCC_SERVER_SHA256_H
#define DLCC_SERVER_SHA256_H

#include <stdint.h>
#include <string.h>

enum { SHA256_BYTES = 32, SHA256_BLOCK = 64 };

typedef struct sha256 {
  uint32_t state[8];
  uint64_t bytes;
  uint8_t block[SHA256_BLOCK];
} sha256;

static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t sha256_rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_compress(sha256 *hash) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++) {
    const uint8_t *p = hash->block + 4 * i;
    w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
  }
  for (int i = 16; i < 64; i++) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    const uint32_t low = sha256_rotate(a, 7) ^ sha256_rotate(a, 18) ^ a >> 3;
    const uint32_t high = sha256_rotate(b, 17) ^ sha256_rotate(b, 19) ^ b >> 10;
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  memcpy(v, hash->state, sizeof v);
  for (int i = 0; i < 64; i++) {
    const uint32_t a = v[0], e = v[4];
    const uint32_t sum1 = sha256_rotate(e, 6) ^ sha256_rotate(e, 11) ^ sha256_rotate(e, 25);
    const uint32_t choice = (e & v[5]) ^ (~e & v[6]);
    const uint32_t first = v[7] + sum1 + choice + sha256_constants[i] + w[i];
    const uint32_t sum0 = sha256_rotate(a, 2) ^ sha256_rotate(a, 13) ^ sha256_rotate(a, 22);
    const uint32_t majority = (a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]);
    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += first;
    v[0] = first + sum0 + majority;
  }
  for (int i = 0; i < 8; i++) hash->state[i] += v[i];
}

static void sha256_open(sha256 *hash) {
  static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memcpy(hash->state, start, sizeof start);
  hash->bytes = 0;
}

static void sha256_add(sha256 *hash, const void *data, size_t size) {
  const uint8_t *from = data;
  for (size_t i = 0; i < size; i++) {
    hash->block[hash->bytes++ % SHA256_BLOCK] = from[i];
    if (hash->bytes % SHA256_BLOCK == 0) sha256_compress(hash);
  }
}

static void sha256_close(sha256 *hash, uint8_t digest[SHA256_BYTES]) {
  const uint64_t bits = hash->bytes * 8;
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = (uint8_t)(bits >> (56 - 8 * i));
  sha256_add(hash, "\x80", 1);
  while (hash->bytes % SHA256_BLOCK != SHA256_BLOCK - sizeof length) sha256_add(hash, "", 1);
  sha256_add(hash, length, sizeof length);
  for (int i = 0; i < SHA256_BYTES; i++)
    digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

static void hmac_sha256(const char *key, const void *data, size_t size,
                        uint8_t digest[SHA256_BYTES]) {
  uint8_t padded[SHA256_BLOCK] = {0}, inner[SHA256_BYTES], pad[SHA256_BLOCK];
  sha256 hash;
  if (strlen(key) > sizeof padded) {
    sha256_open(&hash);
    sha256_add(&hash, key, strlen(key));
    sha256_close(&hash, padded);
  } else {
    memcpy(padded, key, strlen(key));
  }
  for (int i = 0; i < SHA256_BLOCK; i++) pad[i] = padded[i] ^ 0x36;
  sha256_open(&hash);
  sha256_add(&hash, pad, sizeof pad);
  sha256_add(&hash, data, size);
  sha256_close(&hash, inner);
  for (int i = 0; i < SHA256_BLOCK; i++) pad[i] = padded[i] ^ 0x5c;
  sha256_open(&hash);
  sha256_add(&hash, pad, sizeof pad);
  sha256_add(&hash, inner, sizeof inner);
  sha256_close(&hash, digest);
}

#endif
