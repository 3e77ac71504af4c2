/* $task: $setting

   cell        $cell
   factors     $factors
   parameters  $parameters, of these $recurrent in the factors
   constants   $constants bytes
   state       $bytes bytes, the arrays for a step among them; the stack holds a few words

   It reads one input at a time, and remembers others by a state of yours:

       static name_state state;
       float output[NAME_OUTPUTS];
       $declaration

       name_reset(&state);
       name_step(&state, $input, output);

   Several states are independent. Made by kron-plugin; needs C99, and math.h in single precision. */

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
