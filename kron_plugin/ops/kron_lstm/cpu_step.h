// One step of the LSTM's recurrence for a block of lanes. A state is 2N cells, h and then c; what the
// gates i, f, g, o need is 4N cells, one gate after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "../native/blocks.h"
#include "../native/input.h"
#include "../native/lanes.h"
#include "../native/product.h"

static_assert(C == 1, "the LSTM is real");

constexpr int kGates = 4;

// The arguments, as cpu.py lays them out: every field is eight bytes. Tensors are contiguous.
struct Call {
  int64_t threads, steps, batch, size, inputs;  // inputs: 0 dense x, -1 tokens, else features (I)
  int64_t every, token_rows;                    // states are kept every so many steps; rows of the table
  const int64_t* counts;                        // (4): F of each gate
  const int64_t* shapes;                        // (sum F, 2)
  const real* factors;                          // (sum P_f Q_f)
  const real* x;                                // (T, B, 4N) or (T, B, I)
  const int64_t* tokens;                        // (T, B)
  const real* weight;                           // (I, 4N)
  const real* bias;                             // (4N)
  const real* h0;                               // (B, N)
  const real* c0;                               // (B, N)
  const int64_t* lengths;                       // (B) or null
  real* outputs;                                // (T, B, N) or null
  real* kept;                                   // a block of lanes after the other: (T/every, 2N, L), or null
  real* h_n;                                    // (B, N)
  real* c_n;                                    // (B, N)
  // for the backward pass only
  const int64_t* shortcut;  // (4): 1: d_factors gets K_f = W_f^T dW_f; 0: dW_f itself
  const real* d_outputs;    // (T, B, N) or null
  const real* d_h_n;        // (B, N) or null
  const real* d_c_n;        // (B, N) or null
  real* d_x;                // as x, or null
  real* d_weight;           // as weight
  double* d_factors;        // as factors
  real* d_bias;             // as bias
  real* d_h0;               // (B, N)
  real* d_c0;               // (B, N)
  // of kernel.py's
  const Interpreter* interpreter;  // or null

  InputTensors input() const {
    return {steps, batch, kGates * size, inputs, token_rows, x, tokens, weight, d_x};
  }
};

// Where the factors of each gate begin in `shapes` and in `factors`.
struct GateFactors {
  const int64_t* shapes;
  int64_t count, offset;
};
inline std::vector<GateFactors> gate_factors(const Call& call) {
  std::vector<GateFactors> gates;
  const int64_t* shapes = call.shapes;
  int64_t offset = 0;
  for (int k = 0; k < kGates; ++k) {
    gates.push_back({shapes, call.counts[k], offset});
    for (int64_t f = 0; f < call.counts[k]; ++f, shapes += 2) offset += shapes[0] * shapes[1];
  }
  return gates;
}

template <int L>
struct Gates {
  Lanes<L> i, f, g, o;
};

template <int L>
class Step {
 public:
  Step(const Call& call, Arena& arena)
      : lengths(call.lengths, call.steps),
        input(call.input(), arena),
        call_(call),
        products_(products(call)),
        work_(arena, {&products_[0], &products_[1], &products_[2], &products_[3]}),
        recurrent_(arena.take<Cell<L>>(kGates * call.size)) {}

  Lengths<L> lengths;
  Input<L> input;

  void begin(const Block& block) {
    lengths.begin(block);
    input.begin(block);
  }
  // To be called before `gates`, with the state that step t starts from.
  void read(int64_t t, const Cell<L>* state) {
    input.read(t);
    for (int k = 0; k < kGates; ++k)
      apply<L>(products_[k], state, recurrent_ + k * call_.size, work_, [](int64_t, int64_t) {});
  }
  KRON_INLINE Gates<L> gates(int64_t n) const {
    return {sigmoid<L>(before(0, n)), sigmoid<L>(before(1, n)), hyperbolic_tangent<L>(before(2, n)),
            sigmoid<L>(before(3, n))};
  }
  // From one state to the next, or to the same one in the lanes that have ended. Out of line, so that
  // a state computed again has the same bits: in two inlined copies other products may go into fused
  // multiply-adds.
  KRON_OUTLINE void operator()(int64_t t, const Cell<L>* from, Cell<L>* to) {
    const int64_t size = call_.size;
    read(t, from);
    const auto live = lengths.live(t);
    for (int64_t n = 0; n < size; ++n) {
      const Gates<L> gate = gates(n);
      Lanes<L> c = gate.f * from[size + n].v[0] + gate.i * gate.g;
      Lanes<L> h = gate.o * hyperbolic_tangent<L>(c);
      if (lengths.given) {
        h = live ? h : from[n].v[0];
        c = live ? c : from[size + n].v[0];
      }
      to[n].v[0] = h;
      to[size + n].v[0] = c;
    }
  }

 private:
  static std::vector<Product> products(const Call& call) {
    std::vector<Product> all;
    for (const GateFactors& gate : gate_factors(call))
      all.emplace_back(read_factors(gate.count, gate.shapes, call.factors + gate.offset, false),
                       sizeof(Cell<L>));
    return all;
  }
  // Gate k's pre-activation z_k[n].
  KRON_INLINE Lanes<L> before(int k, int64_t n) const {
    const int64_t at = k * call_.size + n;
    const Coef* diagonal = products_[k].diagonal();
    Cell<L> z = recurrent_[at];
    if (diagonal) z.v[0] *= diagonal[n].v[0];
    input.add_to(z, at);
    return z.v[0] + call_.bias[at];
  }

  const Call& call_;
  const std::vector<Product> products_;
  Workspace<L> work_;
  Cell<L>* const recurrent_;  // W_k h without its diagonal
};
