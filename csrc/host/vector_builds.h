#pragma once

// Where code is compiled for one instruction set each: older compilers lack __builtin_convertvector, and must still build
// the rest.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 9)
#define BERT_FAST_HOST_VECTORS
#endif
// And for the products of pairs of bfloat16, which compilers know since then.
#if defined(BERT_FAST_HOST_VECTORS) && (defined(__clang__) || __GNUC__ >= 11)
#define BERT_FAST_HOST_BF16_PAIRS
#endif
