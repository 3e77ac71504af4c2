"""The C++ kernels: how they are compiled and loaded, and the headers they share."""
