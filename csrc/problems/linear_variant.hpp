// Which of the compiled linear tasks a call wants: the row loss and the coordinates of the unroll.
#pragma once

namespace pb {

enum class LinearLoss { kSoftmax, kSquared };
enum class Coordinates { kPrimal, kDual };

}  // namespace pb
