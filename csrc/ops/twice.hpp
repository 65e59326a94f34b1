// What every way of differentiating an unroll says to whoever differentiates the result again.
#pragma once

namespace pb {

inline constexpr char kDifferentiatedTwice[] =
    "double backward: an unroll of pybilevel was differentiated twice, which it cannot be. Where the "
    "gradient "
    "is only used as a value, leave out create_graph=True, or detach it; where second derivatives of the "
    "outer "
    "objective are needed, write the inner loop in plain PyTorch, with torch.autograd.grad(loss, w, "
    "create_graph=True) at every step";

}  // namespace pb
