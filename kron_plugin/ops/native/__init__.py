"""What the C++ kernels are made of: compiling and loading them, and the headers they share."""
