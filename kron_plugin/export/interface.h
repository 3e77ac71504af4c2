/* $task

   cell        $cell
   factors     $factors
   parameters  $parameters, of these $recurrent in the factors
   constants   $constants bytes
   state       $bytes bytes, the arrays for a step among them; the stack holds a few words

   It reads one input at a time. What it remembers of them is in a state of yours:

       static name_state state;
       float output[NAME_OUTPUTS];
       $declaration

       name_reset(&state);
       name_step(&state, $input, output);

   Inputs are as in training, and outputs the model's own, before any softmax or sigmoid. States do
   not depend on each other. Made by kron-plugin; needs C99 with math.h in single precision. */

#ifndef NAME_H
#define NAME_H

#ifdef __cplusplus
extern "C" {
#endif

#define NAME_INPUTS $inputs
#define NAME_OUTPUTS $outputs

typedef struct {
$arrays
} name_state;

/* Begin a sequence. */
void name_reset(name_state *state);

$step

#ifdef __cplusplus
}
#endif

#endif
