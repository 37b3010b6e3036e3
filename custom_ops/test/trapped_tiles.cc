// Linked into a test, lets `x86_amx` itself run on a processor with AVX512-VNNI that lacks AMX: every tile instruction is
// illegal there, and a signal handler reads it, computes it by the emulation and goes on behind it. So the real target's
// instructions, their operands and their order are tested, all but the machine's own arithmetic. Linux on x86-64.
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "core/cpu_features.h"
#include "kernels/simd/emulated_tiles.h"

namespace keras_lowbit {
namespace {

struct ThreadTiles {
  EmulatedTiles tiles;
  TileConfig config;
};
thread_local ThreadTiles thread_tiles;

[[noreturn]] void Fail(const char* what, const unsigned char* code) {
  std::fprintf(stderr, "trapped tiles: %s:", what);
  for (int i = 0; i < 10; ++i) std::fprintf(stderr, " %02x", code[i]);
  std::fprintf(stderr, "\n");
  _exit(1);
}

int64_t Register(const ucontext_t& context, int number) {
  static const int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kOrder[number]];
}

// An instruction with a three-byte VEX prefix, of the map 0F 38: C4, bits R X B and map, bits W vvvv L pp, opcode, ModRM.
struct Instruction {
  const unsigned char* code;
  int prefix, opcode, mod, reg, rm, third, length;
  int64_t address = 0, stride = 0;  // of a memory operand: the index register is the stride of tiles
};

int64_t Signed(const unsigned char* bytes, int count) {
  int32_t word = 0;
  if (count == 0) return 0;
  if (count == 1) return static_cast<int8_t>(bytes[0]);
  std::memcpy(&word, bytes, 4);
  return word;
}

void ReadAddress(const ucontext_t& context, Instruction* in) {
  const unsigned char* code = in->code;
  const int base_bit = code[1] & 0x20 ? 0 : 8, index_bit = code[1] & 0x40 ? 0 : 8;
  int at = 5, base = in->rm + base_bit;
  const bool has_sib = in->rm == 4;
  if (has_sib) {
    const int sib = code[at++], index = (sib >> 3 & 7) + index_bit;
    base = (sib & 7) + base_bit;
    if (index != 4) in->stride = Register(context, index) * (int64_t{1} << (sib >> 6));
  }
  const bool no_base = in->mod == 0 && base % 8 == 5;
  const int bytes = no_base || in->mod == 2 ? 4 : in->mod;
  in->length = at + bytes;
  in->address = Signed(code + at, bytes);
  if (!no_base) in->address += Register(context, base);
  if (no_base && !has_sib) in->address += reinterpret_cast<int64_t>(code) + in->length;
}

Instruction Read(const ucontext_t& context) {
  Instruction in;
  in.code = reinterpret_cast<const unsigned char*>(context.uc_mcontext.gregs[REG_RIP]);
  if (in.code[0] != 0xC4 || (in.code[1] & 0x1F) != 2) Fail("an illegal instruction", in.code);
  in.prefix = in.code[2] & 3, in.third = ~(in.code[2] >> 3) & 15, in.opcode = in.code[3];
  in.mod = in.code[4] >> 6, in.reg = in.code[4] >> 3 & 7, in.rm = in.code[4] & 7;
  in.length = 5;
  if (in.mod != 3) ReadAddress(context, &in);
  return in;
}

template <int kTile = 0>
void Move(const Instruction& in, bool load) {
  if constexpr (kTile < kTileRegisters) {
    if (in.reg != kTile) return Move<kTile + 1>(in, load);
    if (load) return thread_tiles.tiles.Load<kTile>(reinterpret_cast<const void*>(in.address), in.stride);
    thread_tiles.tiles.Store<kTile>(reinterpret_cast<void*>(in.address), in.stride);
  }
}

// The four products of kernels/simd/tiles.h.
bool Multiply(const Instruction& in) {
  const int tiles[3] = {in.reg, in.rm, in.third};
  const auto is = [&](int a, int b, int c) { return tiles[0] == a && tiles[1] == b && tiles[2] == c; };
  EmulatedTiles& machine = thread_tiles.tiles;
  if (is(0, 4, 6)) return machine.Dot<0, 4, 6>(), true;
  if (is(1, 4, 7)) return machine.Dot<1, 4, 7>(), true;
  if (is(2, 5, 6)) return machine.Dot<2, 5, 6>(), true;
  if (is(3, 5, 7)) return machine.Dot<3, 5, 7>(), true;
  return false;
}

bool Configure(const Instruction& in) {
  TileConfig& config = thread_tiles.config;
  const bool memory = in.mod != 3;
  if (in.prefix == 1 && memory) return std::memcpy(reinterpret_cast<void*>(in.address), &config, sizeof config), true;
  if (in.prefix != 0) return false;
  config = TileConfig();
  if (memory) std::memcpy(static_cast<void*>(&config), reinterpret_cast<const void*>(in.address), sizeof config);
  thread_tiles.tiles.LoadConfig(config);
  return true;
}

bool Run(const Instruction& in) {
  constexpr int kF3 = 2, kF2 = 3;
  if (in.opcode == 0x49) return Configure(in);
  if (in.opcode == 0x4B && in.mod != 3 && in.prefix == kF2) return Move(in, true), true;
  if (in.opcode == 0x4B && in.mod != 3 && in.prefix == kF3) return Move(in, false), true;
  return in.opcode == 0x5E && in.mod == 3 && in.prefix == kF2 && Multiply(in);
}

void OnIllegal(int, siginfo_t*, void* data) {
  auto* context = static_cast<ucontext_t*>(data);
  const Instruction in = Read(*context);
  try {
    if (!Run(in)) Fail("no instruction of tiles.h", in.code);
  } catch (const std::logic_error& error) {
    Fail(error.what(), in.code);
  }
  context->uc_mcontext.gregs[REG_RIP] += in.length;
}

// Leaf 7, EDX bit 24: instructions of tiles run by themselves, those that need no permission at least.
bool HasTiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & (1u << 24)) != 0;
}

void SkipIf(bool condition, const char* reason) {
  if (!condition) return;
  std::printf("SKIPPED: %s\n", reason);
  std::fflush(stdout);
  _exit(0);
}

CpuFeatures DetectWithTraps() {
  SkipIf(HasTiles(), "this CPU has tiles of its own; the tests without traps run on them");
  CpuFeatures features;
  features.avx2 = __builtin_cpu_supports("avx2");
  features.avx512_vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512vnni");
  features.amx_int8 = features.avx512_vnni;
  SkipIf(!features.amx_int8, "this CPU has no AVX512-VNNI for what x86_amx does beside its tiles");
  struct sigaction action = {};
  action.sa_sigaction = OnIllegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
  return features;
}

}  // namespace

// In place of core/cpu_features.cc, whose object file the linker then leaves in the library.
const CpuFeatures& Cpu() {
  static const CpuFeatures features = DetectWithTraps();
  return features;
}

}  // namespace keras_lowbit
