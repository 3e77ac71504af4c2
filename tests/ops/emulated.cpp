// A kernel as a program: it reads the fields of its call from stdin, and writes the buffers to stdout
// after the call. KRON_SOURCE is the kernel's file; the argument names the pass.
#include KRON_SOURCE

#include <cstdio>
#include <cstdlib>
#include <cstring>

static void read(void* to, int64_t bytes) {
  if (int64_t(std::fread(to, 1, bytes, stdin)) != bytes) std::abort();
}

int main(int, char** arguments) {
  static_assert(sizeof(Call) % 8 == 0 && sizeof(void*) == 8, "every field is eight bytes");
  std::vector<uint64_t> call(sizeof(Call) / 8);
  std::vector<std::pair<void*, int64_t>> buffers;
  for (uint64_t& field : call) {
    int64_t bytes;  // of a buffer, or -1 before a number
    read(&bytes, 8);
    if (bytes < 0) {
      read(&field, 8);
    } else if (bytes > 0) {
      void* buffer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      read(buffer, bytes);
      buffers.push_back({buffer, bytes});
      field = reinterpret_cast<uint64_t>(buffer);
    }
  }
  const auto pass = std::strcmp(arguments[1], "forward") ? backward : forward;
  const int status = pass(reinterpret_cast<const Call*>(call.data()));
  for (const auto& [buffer, bytes] : buffers) std::fwrite(buffer, 1, bytes, stdout);
  return status;
}
