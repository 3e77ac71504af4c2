/* The pieces of exported C files. A line of four slashes begins a piece and names it. c.py takes the
   pieces that a model needs; it fills in $words, and the model's name for name_ and NAME_.

   A factor multiplies the last digit of the index of a unit, and makes it the first. After all
   factors, every digit is in its place again, and every loop has read neighbours. */

//// tables
/* See name.h. The tables come first, then the functions. */

#include "name.h"

#include <math.h>
#include <string.h>

enum {
    LAYERS = $layers,
    UNITS = $units, /* in a layer */
    PARTS = $parts, /* of a unit: 2 of a complex one, which are neighbours */
    WIDTH = PARTS * UNITS,
    FACTORS = $factors, /* of a product */
    ENTRIES = $entries /* in all of them */
};

/* The numbers of a layer. */
typedef struct {
    const float *weight; /* [product][input][WIDTH] */
    const float *factors; /* [product][ENTRIES]: the last factor first, each row by row */
    const float *bias;
    const float *start; /* h before the first input, if it is not 0 */
    int inputs;
} layer;

/* What is multiplied by a matrix: numbers for so many of its rows. */
typedef struct {
    const float *numbers;
    int first, count;
} row_vector;

$tables

static const layer layers[LAYERS] = {
$rows
};

//// sizes
static const int rows[FACTORS] = {$p_sizes};
static const int columns[FACTORS] = {$q_sizes};

//// 2x2 real
/* Multiply every two neighbours in x by the factor w: all first results, then all second ones. */
static void multiply_factor(const float *restrict w, const float *restrict x, float *restrict y)
{
    for (int n = 0; n < UNITS / 2; n++, x += 2)
        for (int p = 0; p < 2; p++)
            y[p * UNITS / 2 + n] = w[2 * p] * x[0] + w[2 * p + 1] * x[1];
}

//// 2x2 complex
/* Multiply every two neighbours in x by the factor w: all first results, then all second ones. */
static void multiply_factor(const float *restrict w, const float *restrict x, float *restrict y)
{
    for (int n = 0; n < UNITS / 2; n++, x += 4)
        for (int p = 0; p < 2; p++) {
            const float *row = w + 4 * p;
            float *unit = y + p * UNITS + 2 * n;
            unit[0] = row[0] * x[0] - row[1] * x[1] + row[2] * x[2] - row[3] * x[3];
            unit[1] = row[0] * x[1] + row[1] * x[0] + row[2] * x[3] + row[3] * x[2];
        }
}

//// product of 2x2
/* The Kronecker product of the factors by h, from the last factor to the first: from h to a, to b,
   to a again ... Returns where the result is. */
static float *multiply(const float *factors, const float *h, float *a, float *b)
{
    for (int f = 0; f < FACTORS; f++) {
        multiply_factor(factors, h, a);
        factors += 4 * PARTS;
        float *done = a;
        a = b;
        h = b = done;
    }
    return b;
}

//// any real
/* Multiply all groups of neighbours in x by the factor w: their first results, their second ... */
static void multiply_factor(int p_count, int q_count, int groups, const float *restrict w,
                            const float *restrict x, float *restrict y)
{
    for (int n = 0; n < groups; n++, x += q_count)
        for (int p = 0; p < p_count; p++) {
            float sum = 0;
            for (int q = 0; q < q_count; q++)
                sum += w[p * q_count + q] * x[q];
            y[p * groups + n] = sum;
        }
}

//// any complex
/* Multiply all groups of neighbours in x by the factor w: their first results, their second ... */
static void multiply_factor(int p_count, int q_count, int groups, const float *restrict w,
                            const float *restrict x, float *restrict y)
{
    for (int n = 0; n < groups; n++, x += 2 * q_count)
        for (int p = 0; p < p_count; p++) {
            const float *row = w + 2 * p * q_count;
            float re = 0, im = 0;
            for (int q = 0; q < 2 * q_count; q += 2) {
                re += row[q] * x[q] - row[q + 1] * x[q + 1];
                im += row[q] * x[q + 1] + row[q + 1] * x[q];
            }
            y[2 * (p * groups + n)] = re;
            y[2 * (p * groups + n) + 1] = im;
        }
}

//// product of any
/* The Kronecker product of the factors by h, from the last factor to the first: from h to a, to b,
   to a again ... Returns where the result is. */
static float *multiply(const float *factors, const float *h, float *a, float *b)
{
    int units = UNITS;
    for (int f = 0; f < FACTORS; f++) {
        const int groups = units / columns[f];
        multiply_factor(rows[f], columns[f], groups, factors, h, a);
        units = rows[f] * groups;
        factors += rows[f] * columns[f] * PARTS;
        float *done = a;
        a = b;
        h = b = done;
    }
    return b;
}

//// add product
/* z += x U, with the rows of U that x is for; each has width numbers. Many inputs are 0. */
static void add_product(row_vector x, const float *u, int width, float *restrict z)
{
    u += x.first * width;
    for (int i = 0; i < x.count; i++, u += width)
        if (x.numbers[i] != 0)
            for (int n = 0; n < width; n++)
                z[n] += x.numbers[i] * u[n];
}

//// modrelu real
/* h = relu(|z| + b) z / |z|, and 0 for 0. */
static void activate(const float *z, const float *b, float *h)
{
    for (int n = 0; n < UNITS; n++) {
        const float modulus = fabsf(z[n]), moved = modulus + b[n];
        h[n] = modulus == 0 || moved <= 0 ? 0 : moved / modulus * z[n];
    }
}

//// modrelu complex
/* h = relu(|z| + b) z / |z|, and 0 for 0. */
static void activate(const float *z, const float *b, float *h)
{
    for (int n = 0; n < UNITS; n++, z += 2, h += 2) {
        const float modulus = sqrtf(z[0] * z[0] + z[1] * z[1]), moved = modulus + b[n];
        const float scale = modulus == 0 || moved <= 0 ? 0 : moved / modulus;
        h[0] = scale * z[0];
        h[1] = scale * z[1];
    }
}

//// tanh real
/* h = tanh(z + b). */
static void activate(const float *z, const float *b, float *h)
{
    for (int n = 0; n < WIDTH; n++)
        h[n] = tanhf(z[n] + b[n]);
}

//// identity real, identity complex
/* h = z + b. */
static void activate(const float *z, const float *b, float *h)
{
    for (int n = 0; n < WIDTH; n++)
        h[n] = z[n] + b[n];
}

//// step rnn
/* h = activate(W h + U x; b). */
static void step_layer(name_state *state, int l, row_vector x)
{
    const layer *own = &layers[l];
    float *h = state->h[l], *z = multiply(own->factors, h, state->scratch[0], h);
    add_product(x, own->weight, WIDTH, z);
    activate(z, own->bias, h);
}

//// sigmoid
static float sigmoid(float z)
{
    return 1 / (1 + expf(-z));
}

//// gate
/* W_k h + U_k x + b_k in one of the first two scratch arrays. */
static const float *gate(name_state *state, int l, row_vector x, int k)
{
    const layer *own = &layers[l];
    float *z = multiply(own->factors + k * ENTRIES, state->h[l], state->scratch[0],
                        state->scratch[1]);
    add_product(x, own->weight + k * own->inputs * WIDTH, WIDTH, z);
    for (int n = 0; n < UNITS; n++)
        z[n] += own->bias[k * UNITS + n];
    return z;
}

//// step lstm
/* c = s(f) c + s(i) tanh(g) and h = s(o) tanh(c) with the gates i, f, g, o and the sigmoid s. */
static void step_layer(name_state *state, int l, row_vector x)
{
    float *h = state->h[l], *c = state->c[l], *fresh = state->scratch[2];
    const float *z = gate(state, l, x, 0);
    for (int n = 0; n < UNITS; n++)
        fresh[n] = sigmoid(z[n]);
    z = gate(state, l, x, 2);
    for (int n = 0; n < UNITS; n++)
        fresh[n] *= tanhf(z[n]);
    z = gate(state, l, x, 1);
    for (int n = 0; n < UNITS; n++)
        c[n] = sigmoid(z[n]) * c[n] + fresh[n];
    z = gate(state, l, x, 3);
    for (int n = 0; n < UNITS; n++)
        h[n] = sigmoid(z[n]) * tanhf(c[n]);
}

//// step gru
/* h = (1 - z) n + z h with n = tanh(u_n + b_n + r (W_n h + b_h)) and the gates r, z. */
static void step_layer(name_state *state, int l, row_vector x)
{
    const layer *own = &layers[l];
    const float *b_n = own->bias + 2 * UNITS, *b_h = own->bias + 3 * UNITS;
    float *h = state->h[l], *fresh = state->scratch[2];
    const float *r = gate(state, l, x, 0);
    for (int n = 0; n < UNITS; n++)
        fresh[n] = sigmoid(r[n]);
    const float *w_h = multiply(own->factors + 2 * ENTRIES, h, state->scratch[0],
                                state->scratch[1]);
    for (int n = 0; n < UNITS; n++)
        fresh[n] = b_n[n] + fresh[n] * (w_h[n] + b_h[n]);
    add_product(x, own->weight + 2 * own->inputs * WIDTH, WIDTH, fresh);
    const float *z = gate(state, l, x, 1);
    for (int n = 0; n < UNITS; n++) {
        const float keep = sigmoid(z[n]);
        h[n] = (1 - keep) * tanhf(fresh[n]) + keep * h[n];
    }
}

//// moduli
/* |h| of every unit. */
static void take_moduli(const float *h, float *moduli)
{
    for (int n = 0; n < UNITS; n++)
        moduli[n] = sqrtf(h[2 * n] * h[2 * n] + h[2 * n + 1] * h[2 * n + 1]);
}

//// read parts
/* output = V h + c. */
static void read_out(name_state *state, float *output)
{
    memcpy(output, readout_bias, sizeof readout_bias);
    add_product((row_vector){state->h[LAYERS - 1], 0, WIDTH}, readout_parts, NAME_OUTPUTS, output);
}

//// read moduli
/* output = V |h| + c. */
static void read_out(name_state *state, float *output)
{
    memcpy(output, readout_bias, sizeof readout_bias);
    take_moduli(state->h[LAYERS - 1], state->scratch[0]);
    add_product((row_vector){state->scratch[0], 0, UNITS}, readout_moduli, NAME_OUTPUTS, output);
}

//// read both
/* output = V [h ; |h|] + c. */
static void read_out(name_state *state, float *output)
{
    const float *h = state->h[LAYERS - 1];
    memcpy(output, readout_bias, sizeof readout_bias);
    take_moduli(h, state->scratch[0]);
    add_product((row_vector){h, 0, WIDTH}, readout_parts, NAME_OUTPUTS, output);
    add_product((row_vector){state->scratch[0], 0, UNITS}, readout_moduli, NAME_OUTPUTS, output);
}

//// reset
void name_reset(name_state *state)
{
    memset(state, 0, sizeof *state);
    for (int l = 0; l < LAYERS; l++)
        if (layers[l].start != NULL)
            memcpy(state->h[l], layers[l].start, WIDTH * sizeof(float));
}

//// advance
/* Let all layers read an input, and then the output layer unless output is NULL. */
static void advance(name_state *state, row_vector x, float *output)
{
    for (int l = 0; l < LAYERS; l++) {
        step_layer(state, l, x);
        x = (row_vector){state->h[l], 0, WIDTH};
    }
    if (output != NULL)
        read_out(state, output);
}

//// input features
void name_step(name_state *state, const float *x, float *output)
{
    advance(state, (row_vector){x, 0, NAME_INPUTS}, output);
}

//// input symbol
int name_step(name_state *state, int symbol, float *output)
{
    static const float one = 1;
    if (symbol < 0 || symbol >= NAME_INPUTS)
        return -1;
    advance(state, (row_vector){&one, symbol, 1}, output);
    return 0;
}
