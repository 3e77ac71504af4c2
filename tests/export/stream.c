/* Runs an exported model, `tiny`, for test_c.py: reads a sequence, writes all outputs. */
#include "tiny.h"

#ifdef __arm__
/* Linux's calls themselves: a compiler for microcontrollers has no system below its C library. */
static long call(long number, long a, long b, long c)
{
    register long r7 __asm__("r7") = number;
    register long r0 __asm__("r0") = a;
    register long r1 __asm__("r1") = b;
    register long r2 __asm__("r2") = c;
    __asm__ volatile("svc #0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2) : "memory");
    return r0;
}

static long read(int file, void *data, unsigned long size)
{
    return call(3, file, (long)data, (long)size);
}

static long write(int file, const void *data, unsigned long size)
{
    return call(4, file, (long)data, (long)size);
}

int main(void);

void _start(void)
{
    call(1, main(), 0, 0);
}
#else
long read(int file, void *data, unsigned long size);
long write(int file, const void *data, unsigned long size);
#endif

enum { STEPS = 20 };

#ifdef SYMBOLS
typedef int input;
#define STEP(state, x, output) if (tiny_step(state, x, output) != 0) return 1
#else
typedef float input[TINY_INPUTS];
#define STEP(state, x, output) tiny_step(state, x, output)
#endif

static input inputs[STEPS];
static tiny_state one, other;

int main(void)
{
    float output[TINY_OUTPUTS];
    int size = sizeof one;
    if (read(0, inputs, sizeof inputs) != sizeof inputs)
        return 1;
    write(1, &size, sizeof size);
    tiny_reset(&one);
    for (int t = 0; t < STEPS; t++) {
        STEP(&one, inputs[t], output);
        write(1, output, sizeof output);
    }
    /* Again, beside a state that reads backwards, and at first without outputs. */
    tiny_reset(&one);
    tiny_reset(&other);
    for (int t = 0; t < STEPS; t++) {
        STEP(&one, inputs[t], t < STEPS / 2 ? 0 : output);
        if (t >= STEPS / 2)
            write(1, output, sizeof output);
        STEP(&other, inputs[STEPS - 1 - t], output);
        write(1, output, sizeof output);
    }
#ifdef SYMBOLS
    if (tiny_step(&one, -1, output) != -1 || tiny_step(&one, TINY_INPUTS, output) != -1)
        return 1;
#endif
    return 0;
}
