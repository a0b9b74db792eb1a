// Which instruction set serves on this processor: one choice for every op. An op holds its kernels by Isa.

#pragma once

namespace deepres {

// Each has the instructions of those before it. kAmxPlain, AMX's layouts without AMX, is for tests only.
enum class Isa : int { kBase, kAvx2, kAvx512, kAvx512Bf16, kAmxPlain, kAmx };

// The one that serves, chosen once: the fastest that this processor has, or the one that the environment
// variable DEEPRES_CPU_ISA names. Throws std::invalid_argument for a name that is none of this processor's.
Isa isa();

}  // namespace deepres

// Of an op's versions, one for each width of vectors, that of the widest that isa() has; throws as that does.
// Other processors than x86-64 have the generic one alone, and see no name of the others.
#if defined(__x86_64__)
#define DEEPRES_WIDEST(generic, avx2, avx512) \
  (isa() >= Isa::kAvx512 ? (avx512) : isa() >= Isa::kAvx2 ? (avx2) : (generic))
#else
#define DEEPRES_WIDEST(generic, avx2, avx512) (generic)
#endif
