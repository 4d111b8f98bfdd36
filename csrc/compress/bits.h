/* SPDX-License-Identifier: Apache-2.0
 * Numbers of a few bits each, packed into bytes. Bits fill each byte from its lowest bit, and a
 * number is written from its lowest bit. The last byte is filled up with zeros. */
#ifndef FED_BITS_H
#define FED_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct fed_bit_writer {
    uint8_t *at;
    uint64_t word; /* bits that are not written yet, from the lowest */
    unsigned num_bits;
} fed_bit_writer;

/* Appends a number below 2^num_bits as num_bits bits; num_bits 0..32. */
static inline void fed_put_bits(fed_bit_writer *writer, uint32_t number, unsigned num_bits) {
    writer->word |= (uint64_t)number << writer->num_bits;
    writer->num_bits += num_bits;
    while (writer->num_bits >= 8) {
        *writer->at++ = (uint8_t)writer->word;
        writer->word >>= 8;
        writer->num_bits -= 8;
    }
}

/* Fills the last byte; the next number begins a new one. */
static inline void fed_end_byte(fed_bit_writer *writer) {
    if (writer->num_bits > 0) *writer->at++ = (uint8_t)writer->word;
    writer->word = 0;
    writer->num_bits = 0;
}

/* Appends a float; the writer must be at the beginning of a byte. */
static inline void fed_put_float(fed_bit_writer *writer, float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    for (int b = 0; b < 4; b++) *writer->at++ = (uint8_t)(bits >> (8 * b));
}

typedef struct fed_bit_reader {
    const uint8_t *at, *end;
    uint64_t word;
    unsigned num_bits;
    int has_failed; /* more bits were read than there are, or filling bits are not zero */
} fed_bit_reader;

/* Returns the next number of num_bits bits, 0..32; 0 and has_failed if there are too few. */
static inline uint32_t fed_get_bits(fed_bit_reader *reader, unsigned num_bits) {
    while (reader->num_bits < num_bits) {
        if (reader->at == reader->end) {
            reader->has_failed = 1;
            return 0;
        }
        reader->word |= (uint64_t)*reader->at++ << reader->num_bits;
        reader->num_bits += 8;
    }
    const uint32_t number = (uint32_t)(reader->word & ((UINT64_C(1) << num_bits) - 1));
    reader->word >>= num_bits;
    reader->num_bits -= num_bits;
    return number;
}

/* Skips the rest of a byte, which must be zeros. */
static inline void fed_skip_to_byte(fed_bit_reader *reader) {
    if (reader->word != 0) reader->has_failed = 1;
    reader->word = 0;
    reader->num_bits = 0;
}

/* Returns a float; the reader must be at the beginning of a byte. */
static inline float fed_get_float(fed_bit_reader *reader) {
    uint32_t bits = 0;
    if (reader->end - reader->at < 4) {
        reader->has_failed = 1;
        reader->at = reader->end;
        return 0;
    }
    for (int b = 0; b < 4; b++) bits |= (uint32_t)*reader->at++ << (8 * b);
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* 1 if exactly all bytes were read and nothing failed. */
static inline int fed_is_read(fed_bit_reader *reader) {
    fed_skip_to_byte(reader);
    return reader->at == reader->end && !reader->has_failed;
}

#endif
