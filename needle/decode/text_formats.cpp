// The formats of JSON Schema as patterns: pattern.h's pattern_of_format.
#include <array>
#include <string>
#include <utility>

#include "needle/decode/pattern.h"

namespace needle {
namespace {

// Days that exist in the Gregorian calendar from year 1 on.
std::string date() {
  const std::string year = "(?:000[1-9]|00[1-9]\\d|0[1-9]\\d\\d|[1-9]\\d{3})";
  const std::string leap =
      "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
  return "(?:" + year +
         "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|"
         "02-(?:0[1-9]|1\\d|2[0-8]))|" +
         leap + "-02-29)";
}

std::string time() {
  const std::string clock = "(?:[01]\\d|2[0-3]):[0-5]\\d";
  return clock + ":[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-]" + clock + ")";
}

std::string duration() {
  const std::string n = "\\d{1,6}";
  const std::string time =
      "T(?:" + n + "H(?:" + n + "M)?(?:" + n + "S)?|" + n + "M(?:" + n + "S)?|" + n + "S)";
  const std::string date =
      "(?:" + n + "Y(?:" + n + "M)?(?:" + n + "D)?|" + n + "M(?:" + n + "D)?|" + n + "D)";
  return "P(?:" + n + "W|" + date + "(?:" + time + ")?|" + time + ")";
}

// At most 8 labels of at most 30 characters, so that the whole stays below 254; the last begins
// with a letter.
std::string hostname() {
  const std::string rest = "(?:[A-Za-z0-9-]{0,28}[A-Za-z0-9])?";
  return "(?:[A-Za-z0-9]" + rest + "\\.){0,7}[A-Za-z]" + rest;
}

std::string email() {
  const std::string atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
  return atom + "(?:\\." + atom + ")*@" + hostname();
}

std::string ipv4() {
  const std::string octet = "(?:\\d|[1-9]\\d|1\\d\\d|2[0-4]\\d|25[0-5])";
  return "(?:" + octet + "\\.){3}" + octet;
}

std::string repeat(const std::string& part, int least, int most) {
  return "(?:" + part + "){" + std::to_string(least) + "," + std::to_string(most) + "}";
}

std::string ipv6() {
  const std::string group = "[0-9A-Fa-f]{1,4}";
  std::string all = repeat(group + ":", 7, 7) + group;
  for (int before = 0; before <= 7;
       ++before) {  // groups before "::", which stands for one at least
    const int after = 7 - before;
    const std::string head = before == 0 ? "" : group + repeat(":" + group, before - 1, before - 1);
    const std::string tail =
        after == 0 ? "" : "(?:" + group + repeat(":" + group, 0, after - 1) + ")?";
    all += "|" + head + "::" + tail;
  }
  return "(?:" + all + ")";
}

std::string uuid() {
  const std::string hex = "[0-9A-Fa-f]";
  return hex + "{8}-" + hex + "{4}-" + hex + "{4}-" + hex + "{4}-" + hex + "{12}";
}

// RFC 3986 without IP literals.
std::string uri() {
  const std::string encoded = "%[0-9A-Fa-f][0-9A-Fa-f]";
  const std::string plain = "A-Za-z0-9._~!$&'()*+,;=\\-";
  const std::string pchar = "(?:[" + plain + ":@]|" + encoded + ")";
  const std::string authority = "(?:(?:[" + plain + ":]|" + encoded + ")*@)?(?:[" + plain + "]|" +
                                encoded + ")+(?::\\d{1,5})?";
  const std::string rest = pchar + "*(?:/" + pchar + "*)*";
  return "[A-Za-z][A-Za-z0-9+.-]*:(?://" + authority + "(?:/" + pchar + "*)*|/(?:" + pchar +
         "+(?:/" + pchar + "*)*)?|" + pchar + rest + ")(?:\\?(?:" + pchar +
         "|[/?])*)?(?:#(?:" + pchar + "|[/?])*)?";
}

}  // namespace

std::optional<std::string> pattern_of_format(std::string_view format) {
  constexpr std::array<std::pair<std::string_view, std::string (*)()>, 9> kFormats = {
      {{"date", date},
       {"time", time},
       {"duration", duration},
       {"hostname", hostname},
       {"email", email},
       {"ipv4", ipv4},
       {"ipv6", ipv6},
       {"uuid", uuid},
       {"uri", uri}}};
  if (format == "date-time") {
    return "^" + date() + "T" + time() + "$";
  }
  for (const auto& [name, pattern] : kFormats) {
    if (name == format) {
      return "^(?:" + pattern() + ")$";
    }
  }
  return std::nullopt;
}

}  // namespace needle
