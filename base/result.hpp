// Result<T>: the one way an operation reports that it could not be done.
//
// Exceptions stop at the file that includes the package which throws them; a broken invariant of our own
// ends the process through ORRERY_CHECK, in release builds too.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <variant>

#include "base/errors.hpp"

namespace orrery {

/// What went wrong, for a person: one sentence with its place, without a full stop at the end, and a hint on
/// what to do about it (may be empty).
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;
  std::string hint = {};
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();

  /// "message (hint)" as printed after "orrery: error: ".
  std::string text() const { return hint.empty() ? message : message + " (" + hint + ")"; }
};

template <class T>
class [[nodiscard]] Result {
public:
  Result(T value) : slot_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : slot_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return slot_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return std::get<0>(slot_); }
  const T& value() const& { return std::get<0>(slot_); }
  T&& value() && { return std::get<0>(std::move(slot_)); }
  const Error& error() const { return std::get<1>(slot_); }

private:
  std::variant<T, Error> slot_;
};

struct Done {};
using Status = Result<Done>;

/// Stops the process when the code itself is wrong.
#define ORRERY_CHECK(condition)                                                          \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

/// Evaluates a Result; hands its error to our caller, or names its value.
#define ORRERY_TRY(name, expression)                     \
  auto name##_result = (expression);                     \
  if (!name##_result.ok()) return name##_result.error(); \
  auto&& name = std::move(name##_result).value()

/// The same for a Status.
#define ORRERY_TRY_DONE(expression)                                \
  do {                                                             \
    if (auto status_ = (expression); !status_.ok()) return status_.error(); \
  } while (false)

}  // namespace orrery
