// The native part of the spectral method; compiled once per instruction set.
#include "cpu/spectral.hpp"

#include "cpu/spectral_normal.hpp"
#include "cpu/spectral_pairs.hpp"

#define PB_JOIN(a, b) a##b
#define PB_TABLE(isa) PB_JOIN(spectral_kernels_, isa)

namespace pb {

extern const SpectralKernels PB_TABLE(PB_ISA) = {
    {{weighted_pairs<float>}, {weighted_pairs<double>}}, normal_matrix, power_at, last_edges};

}  // namespace pb
