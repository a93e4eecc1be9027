// UTF-8, as RFC 3629 has it: nothing overlong, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace adexport::core {

// How many bytes the character at `at` has; 0 if there is none.
std::size_t utf8_character(std::string_view text, std::size_t at);
// Where the text stops being UTF-8: its end if it is whole.
std::size_t utf8_end(std::string_view text);

}  // namespace adexport::core
