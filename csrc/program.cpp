#include "program.h"

#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "capability.h"
#include "registry.h"

namespace sstkern {

namespace {

// Numbers of a description, one after the other.
class Reader {
 public:
  explicit Reader(Ints numbers) : numbers_(numbers) {}

  int64_t number() {
    SSTKERN_CHECK_VALUE(at_ < numbers_.size(), "program: its description ends early");
    return numbers_[at_++];
  }
  int64_t size() {
    const int64_t found = number();
    SSTKERN_CHECK_VALUE(found >= 0 && found < int64_t{1} << 31, "program: a size of its description is ", found);
    return found;
  }
  int64_t count() {
    const int64_t found = number();
    SSTKERN_CHECK_VALUE(found >= 0 && found <= static_cast<int64_t>(numbers_.size()), "program: a count of its description is ", found);
    return found;
  }
  int64_t below(int64_t end, const char* what) {
    const int64_t found = number();
    SSTKERN_CHECK_VALUE(found >= 0 && found < end, "program: ", what, " ", found, " of its description does not exist; there are ", end);
    return found;
  }
  template <class T, class Read>
  std::vector<T> list(const Read& read) {
    std::vector<T> found(count());
    for (T& one : found) one = read();
    return found;
  }
  bool ended() const { return at_ == numbers_.size(); }

 private:
  Ints numbers_;
  size_t at_ = 0;
};

class ProgramReader {
 public:
  ProgramReader(Program& program, Ints description) : p_(program), read_(description) {}

  void run() {
    p_.plain = 0;
    for (int64_t* const count : {&p_.inputs, &p_.states, &p_.outputs, &p_.weights, &p_.vectors, &p_.numbers})
      *count = read_.below(1 << 20, "count");
    p_.slots = read_.list<Slot>([this] { return slot(); });
    check_results();
    p_.starts = read_.list<int64_t>([this] { return read_.size(); });
    p_.vector_sizes.resize(p_.vectors);
    for (size_t phase = 0; phase < p_.phases.size(); ++phase) {
      phase_ = static_cast<int>(phase);
      p_.attached[phase] = read_.count();
      attached_.assign(p_.attached[phase], std::nullopt);
      p_.phases[phase] = read_.list<ProgramStage>([this] { return stage(); });
    }
    p_.sums = read_.list<RowSum>([this] { return sum(); });
    SSTKERN_CHECK_VALUE(read_.ended(), "program: its description goes on after its end");
  }

 private:
  Slot slot() {
    const auto kind = static_cast<SlotKind>(read_.below(6, "kind of slot"));
    const int64_t most = kind == SlotKind::input                               ? p_.inputs
                         : kind == SlotKind::before || kind == SlotKind::after ? p_.states
                         : kind == SlotKind::output                            ? p_.outputs
                                                                               : 1;
    const int64_t place = read_.below(most, "place of a slot"), width = read_.size();
    const bool boolean = read_.below(2, "flag") != 0, rows_only = read_.below(2, "flag") != 0;
    return {kind, place, width, boolean, rows_only};
  }

  // Every output and every state after a step has one slot.
  void check_results() const {
    std::vector<int64_t> outputs(p_.outputs), after(p_.states);
    for (const Slot& slot : p_.slots) {
      if (slot.kind == SlotKind::output) ++outputs[slot.place];
      if (slot.kind == SlotKind::after) ++after[slot.place];
    }
    for (const auto* const counts : {&outputs, &after})
      for (const int64_t count : *counts) SSTKERN_CHECK_VALUE(count == 1, "program: a result has ", count, " slots");
  }

  SlotStart start() {
    const int64_t slot = read_.below(static_cast<int64_t>(p_.slots.size()), "slot");
    return {slot, read_.number()};
  }

  // Throws unless the row has so many numbers from there on.
  SlotStart row(int64_t width, const SlotStart& at, bool booleans = false) {
    Slot& slot = p_.slots[at.slot];
    const bool of_state = slot.kind == SlotKind::before || slot.kind == SlotKind::after;
    SSTKERN_CHECK_VALUE(!of_state || phase_ == 1, "program: rows of a state are read outside the loop over time steps");
    if (slot.kind == SlotKind::step && slot.phase < 0) slot.phase = phase_;
    SSTKERN_CHECK_VALUE(slot.kind != SlotKind::step || slot.phase == phase_, "program: rows of one phase are read in another");
    SSTKERN_CHECK_VALUE(at.start >= 0 && width >= 0 && at.start <= slot.width - width && (booleans || !slot.boolean), "program: ", width,
                        " numbers from ", at.start, " on are not in slot ", at.slot, " of ", slot.width);
    return at;
  }

  // The same of what is written, which inputs and the states before a step are not.
  SlotStart written_row(int64_t width, const SlotStart& at, bool booleans = false) {
    const SlotKind kind = p_.slots[at.slot].kind;
    SSTKERN_CHECK_VALUE(kind != SlotKind::input && kind != SlotKind::before, "program: slot ", at.slot, " is an input, and written to");
    return row(width, at, booleans);
  }

  ProgramProduct product() {
    const SlotStart operand = start();
    const int64_t rows = read_.size(), depth = read_.size(), columns = read_.size(), weight = read_.below(p_.weights, "weight");
    row(rows * depth, operand);
    return {operand, rows, depth, columns, weight, read_.below(2, "flag") != 0};
  }

  PlainProduct plain() {
    const ProgramProduct found = product();
    const SlotStart target = start();
    return {found, written_row(found.rows * found.columns, target), p_.plain++};
  }

  AttachedProduct attached(int64_t units) {
    const ProgramProduct found = product();
    const int64_t gates = read_.size();
    const bool ahead = read_.below(2, "flag") != 0;
    SSTKERN_CHECK_VALUE(gates > 0 && gates * units == found.columns && found.rows == 1, "program: ", gates, " gates of ", units,
                        " units are not ", found.columns, " columns");
    const SlotKind kind = p_.slots[found.operand.slot].kind;
    const bool of_all = kind == SlotKind::input || kind == SlotKind::output || kind == SlotKind::rows;
    SSTKERN_CHECK_VALUE(!ahead || of_all, "program: a step's rows are not there ahead of it");
    const int64_t number = read_.below(static_cast<int64_t>(attached_.size()), "attached product"), bias = read_.number();
    SSTKERN_CHECK_VALUE(bias >= -1 && bias < p_.vectors, "program: there is no vector ", bias);
    if (bias >= 0) p_.vector_sizes[bias] = std::max(p_.vector_sizes[bias], found.columns);
    // Packed once for all loops that have it.
    const std::array<int64_t, 7> packed{units, gates, found.depth, found.columns, found.weight, found.transposed, bias};
    SSTKERN_CHECK_VALUE(attached_[number].value_or(packed) == packed, "program: two attached products are number ", number);
    attached_[number] = packed;
    return {found, static_cast<int>(gates), ahead, number, bias};
  }

  int64_t begin() {
    const int64_t place = read_.number();
    SSTKERN_CHECK_VALUE(place >= -1 && place < static_cast<int64_t>(p_.starts.size()), "program: start ", place, " does not exist");
    return place < 0 ? 0 : p_.starts[place];
  }

  // What a function reads or writes, of `units` units or the one number that all take.
  void touched(int64_t units) {
    const int64_t slot = read_.below(static_cast<int64_t>(p_.slots.size()), "slot"), start = begin();
    const bool one = read_.below(2, "flag") != 0, boolean = read_.below(2, "flag") != 0, written = read_.below(2, "flag") != 0;
    SSTKERN_CHECK_VALUE(boolean == p_.slots[slot].boolean, "program: slot ", slot, " has numbers read as bools, or bools as numbers");
    written ? written_row(units, {slot, start}, boolean) : row(one ? 1 : units, {slot, start}, boolean);
  }

  void touched_vector(int64_t units) {
    const int64_t vector = read_.below(p_.vectors, "vector"), start = begin();
    const int64_t size = start + (read_.below(2, "flag") != 0 ? 1 : units);
    p_.vector_sizes[vector] = std::max(p_.vector_sizes[vector], size);
  }

  UnitsLoop loop() {
    const int64_t function = functions_++, units = read_.size();
    SSTKERN_CHECK_VALUE(function < p_.library->count, "program: its library has ", p_.library->count, " functions only");
    UnitsLoop found{function, units, read_.list<AttachedProduct>([this, units] { return attached(units); })};
    SSTKERN_CHECK_VALUE(found.attached.size() <= kMostProducts, "program: ", found.attached.size(), " products are attached to a loop");
    for (int64_t left = read_.count(); left > 0; --left) touched(units);
    for (int64_t left = read_.count(); left > 0; --left) touched_vector(units);
    return found;
  }

  MovedRow move() {
    MovedRow found;
    int64_t total = 0;
    for (int64_t sources = read_.count(); sources > 0; --sources) {
      const SlotStart from = start();
      found.widths.push_back(read_.size());
      found.sources.push_back(row(found.widths.back(), from, true));
      total += found.widths.back();
    }
    found.target = start();
    found.begin.push_back(0);
    for (int64_t left = read_.count(); left > 0; --left) {
      for (int64_t count = read_.count(); count > 0; --count) found.places.push_back(read_.below(total, "number of a row"));
      found.begin.push_back(static_cast<int64_t>(found.places.size()));
    }
    const int64_t width = static_cast<int64_t>(found.begin.size()) - 1;
    found.picked = found.sources.size() == 1;
    for (int64_t i = 0; i <= width; ++i) found.picked &= found.begin[i] == i;
    written_row(width, found.target, true);
    for (const SlotStart& from : found.sources)
      SSTKERN_CHECK_VALUE(p_.slots[from.slot].boolean == p_.slots[found.target.slot].boolean, "program: bools moved among numbers");
    return found;
  }

  ReducedRow reduction() {
    SSTKERN_CHECK_VALUE(p_.library->reductions_of_float || p_.library->reductions_of_double, "program: its library has no reductions");
    const int64_t kind = read_.below(kReductions, "reduction"), runs = read_.size(), width = read_.size();
    ReducedRow found{kind, runs, width, read_.size(), {}, {}};
    for (int64_t sources = read_.below(3, "row to reduce"); sources > 0; --sources) found.sources.push_back(row(runs * width, start()));
    SSTKERN_CHECK_VALUE(!found.sources.empty(), "program: a reduction of no row");
    found.target = start();
    written_row(kind < kCumulative ? runs : runs * width, found.target);
    return found;
  }

  ProgramStage stage() {
    ProgramStage found;
    found.plain = read_.list<PlainProduct>([this] { return plain(); });
    found.moves = read_.list<MovedRow>([this] { return move(); });
    found.reductions = read_.list<ReducedRow>([this] { return reduction(); });
    found.loops = read_.list<UnitsLoop>([this] { return loop(); });
    return found;
  }

  RowSum sum() {
    RowSum found{};
    found.left = read_.below(static_cast<int64_t>(p_.slots.size()), "slot");
    found.left_width = read_.size();
    found.rows = read_.size();
    found.right.slot = read_.number();
    found.right.start = read_.number();
    found.right_width = read_.size();
    const Slot& left = p_.slots[found.left];
    const bool at_end = found.right.slot < 0 && left.kind == SlotKind::step && left.phase == 2;
    SSTKERN_CHECK_VALUE((left.kind == SlotKind::rows || at_end) && left.width == found.rows * found.left_width && !left.boolean,
                        "program: a sum of rows that are not there");
    if (found.right.slot < 0) return found;
    SSTKERN_CHECK_VALUE(found.right.slot < static_cast<int64_t>(p_.slots.size()), "program: slot ", found.right.slot);
    const SlotKind kind = p_.slots[found.right.slot].kind;
    SSTKERN_CHECK_VALUE(kind == SlotKind::rows || kind == SlotKind::input || kind == SlotKind::output, "program: a sum of rows of a step");
    row(found.rows * found.right_width, found.right);
    return found;
  }

  Program& p_;
  Reader read_;
  std::vector<std::optional<std::array<int64_t, 7>>> attached_;  // of the phase, by their numbers
  int64_t functions_ = 0;                                        // of the loops so far: each has the next one of the library
  int phase_ = 0;
};

struct Programs {
  std::mutex mutex;
  std::vector<std::shared_ptr<const ProgramLibrary>> libraries;
  std::unordered_map<int64_t, std::shared_ptr<const Program>> programs;
  int64_t next = 0;
};

Programs& all() {
  static Programs one;
  return one;
}

}  // namespace

int64_t load_program_library(const std::string& path) {
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* const error = handle ? nullptr : dlerror();
  SSTKERN_CHECK_VALUE(handle, "program: cannot load ", path, ": ", error ? error : "unknown error");
  const auto* const library = static_cast<const ProgramLibrary*>(dlsym(handle, "sstkern_program"));
  SSTKERN_CHECK_VALUE(library, "program: ", path, " has none: it lacks the symbol sstkern_program");
  SSTKERN_CHECK_VALUE(library->version == kKernelsVersion, "program: compiled with version ", library->version,
                      " of csrc/kernels/kernels.h, and this build has version ", kKernelsVersion);
  const auto& levels = allowed_levels(ScalarType::BFloat16);
  SSTKERN_CHECK_VALUE(std::find(levels.begin(), levels.end(), library->level) != levels.end() && products_of(library->level),
                      "program: compiled for '", library->level, "', which this process does not use");
  Programs& programs = all();
  const std::lock_guard lock(programs.mutex);
  // Stays loaded until the process ends: a thread may be in its code, and dlopen gives the same one for the same path. So the list grows by
  // an entry of 16 bytes for each text, beside a library of some 50 kB.
  programs.libraries.emplace_back(library, [](const ProgramLibrary*) {});
  return static_cast<int64_t>(programs.libraries.size()) - 1;
}

int64_t make_program(int64_t library, Ints description) {
  Programs& programs = all();
  const auto program = std::make_shared<Program>();
  {
    const std::lock_guard lock(programs.mutex);
    SSTKERN_CHECK_VALUE(library >= 0 && library < static_cast<int64_t>(programs.libraries.size()), "program: there is no library ",
                        library);
    program->library = programs.libraries[library];
  }
  program->products = products_of(program->library->level);
  ProgramReader(*program, description).run();
  const std::lock_guard lock(programs.mutex);
  programs.programs.emplace(programs.next, program);
  return programs.next++;
}

void forget_program(int64_t program) {
  Programs& programs = all();
  const std::lock_guard lock(programs.mutex);
  programs.programs.erase(program);
}

std::shared_ptr<const Program> find_program(int64_t program) {
  Programs& programs = all();
  const std::lock_guard lock(programs.mutex);
  const auto found = programs.programs.find(program);
  SSTKERN_CHECK_VALUE(found != programs.programs.end(), "program: there is no program ", program);
  return found->second;
}

}  // namespace sstkern
