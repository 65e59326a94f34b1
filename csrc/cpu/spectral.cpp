// The native part of the spectral method; compiled once per instruction set.
#include "cpu/spectral.hpp"

#include "cpu/spectral_normal.hpp"
#include "cpu/spectral_pairs.hpp"
#include "cpu/table.hpp"

namespace pb {

extern const SpectralKernels PB_TABLE(spectral_kernels) = {
    {{weighted_pairs<float>}, {weighted_pairs<double>}}, normal_matrix, power_at, last_edges};

}  // namespace pb
