// The arguments of a recurrence over a whole sequence.
//
// Letters: t time (T steps), b batch (B, the lanes of vectors), n unit (N), c part of a complex number
// (C), s part of the state (S), k product (K of them), f factor, p/q rows/columns of a factor. W = C N.
#pragma once

#include <cstdint>

#include "input.h"
#include "interrupt.h"
#include "lanes.h"

// As cpu.py lays it out: every field is eight bytes. Tensors are contiguous.
struct Call {
  int64_t threads, steps, batch, size;
  int64_t inputs;          // 0 dense x, -1 tokens, else features (I)
  int64_t token_rows;      // rows of the weight table
  int64_t activation;      // index into the cell's activations
  int64_t every;           // states are kept once in so many steps
  int64_t in_sequences;    // 1: lanes hold sequences, even where units would be faster
  const int64_t* counts;   // (K): factors of each product
  const int64_t* shapes;   // (sum of counts, 2)
  const real* factors;     // (sum P_f Q_f, C)
  const real* x;           // (T, B, K W) or (T, B, I)
  const int64_t* tokens;   // (T, B)
  const real* weight;      // (I, K W)
  const real* bias;        // the cell defines its shape
  const real* initial;     // (S, B, W)
  const int64_t* lengths;  // (B) or null
  real* outputs;           // (T, B, W): h after each step; or null
  real* kept;              // block by block, in elements: (segments + 1, S, elements); or null
  real* last;              // (S, B, W)
  // for the backward pass only
  const int64_t* shortcut;  // (K): 1: d_factors gets K_f = W_f^H dW_f; 0: dW_f itself
  const real* d_outputs;    // (T, B, W) or null
  const real* d_last;       // (S, B, W) or null
  real* d_x;                // as x, or null
  real* d_weight;           // as weight
  double* d_factors;        // as factors
  real* d_bias;             // as bias
  real* d_initial;          // (S, B, W)
  // set by kernel.py
  const Interpreter* interpreter;  // or null

  int64_t segments() const { return (steps + every - 1) / every; }
  int64_t width() const { return C * size; }
  InputTensors input(int products) const {
    return {steps, batch, products * size, inputs, token_rows, x, tokens, weight, d_x};
  }
};
