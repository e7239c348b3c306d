#include "compiler/layout.hpp"

namespace orrery::compiler {

Layout single_card(std::uint32_t slice_count) {
  Layout layout;
  layout.slice_count = slice_count;
  layout.owned = {{{}}};
  for (std::uint32_t slice = 0; slice < slice_count; ++slice) layout.owned[0][0].push_back(slice);
  return layout;
}

}  // namespace orrery::compiler
