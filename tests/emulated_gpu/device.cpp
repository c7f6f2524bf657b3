// Options, the report, and the memory of the devices.
#include "device.h"
#include <cstdarg>
#include <cstdlib>
#include <set>
#include <sstream>
#include <unistd.h>

namespace emu {

static Options read_options() {
  Options o;
  const char *text = getenv("EMULATED_GPU");
  std::stringstream list(text ? text : "");
  bool reuse_said = false;
  for (std::string item; std::getline(list, item, ',');) {
    size_t at = item.find('=');
    std::string key = item.substr(0, at), value = at == std::string::npos ? "" : item.substr(at + 1);
    auto number = [&] { return strtoll(value.c_str(), nullptr, 10); };
    if (key == "schedule" && value == "eager") o.schedule = Schedule::Eager;
    else if (key == "schedule" && value == "late") o.schedule = Schedule::Late;
    else if (key == "schedule" && value == "mirror") o.schedule = Schedule::Mirror;
    else if (key == "schedule" && value == "random") o.schedule = Schedule::Random;
    else if (key == "kernels" && value == "loops") o.kernels = Kernels::Loops;
    else if (key == "kernels" && value == "fibres") o.kernels = Kernels::Fibres;
    else if (key == "kernels" && value == "reversed") o.kernels = Kernels::Reversed;
    else if (key == "seed") o.seed = number();
    else if (key == "memory") o.memory = number();
    else if (key == "devices") o.devices = number();
    else if (key == "init") o.init = number();
    else if (key == "driver") o.driver = number();
    else if (key == "capability") o.capability = number();
    else if (key == "nvrtc") o.nvrtc = number();
    else if (key == "lost_after") o.lost_after = number();
    else if (key == "reuse") { o.reuse = number(); reuse_said = true; }
    else if (key == "report") o.report = value;
    else if (!key.empty()) { fprintf(stderr, "emulated GPU: unknown option %s\n", item.c_str()); _exit(86); }
  }
  // Without reuse, a pointer to freed memory is found at the launch; with it, what is overwritten too early.
  if (!reuse_said) o.reuse = o.schedule != Schedule::Eager;
  return o;
}

const Options &options() { static auto &o = *new Options(read_options()); return o; }

std::recursive_mutex &lock() { static auto &m = *new std::recursive_mutex; return m; }

// The report. It outlives all other static objects because it is never destroyed.
struct Report { std::map<std::string, long> counts; std::vector<std::string> problems; };
static Report &report() { static Report *r = new Report; return *r; }

void count(const std::string &what) { report().counts[what]++; }

void problem(const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::lock_guard<std::recursive_mutex> guard(lock());
  auto &all = report().problems;
  all.push_back(text);
  if (all.size() <= 20) fprintf(stderr, "emulated GPU: PROBLEM %s\n", text);
}

// Memory: each allocation has guards on both sides.
#ifdef __SANITIZE_ADDRESS__
static const size_t GUARD = 0;  // AddressSanitizer has its own
#else
static const size_t GUARD = 256;
#endif
static const unsigned char GUARD_BYTE = 0xa5, FRESH_BYTE = 0xff;  // the latter makes NaN of every float type
static const size_t QUARANTINE = 64 << 20;                        // bytes of freed memory that are watched

struct Block { size_t bytes; int device; Stream *stream; bool freed; };
// Never destroyed, because programs free memory until they end.
static auto &all_blocks = *new std::map<Address, Block>;
static auto &reusable = *new std::map<std::pair<Stream *, size_t>, std::vector<Address>>;
static auto &quarantine = *new std::deque<Address>;
static size_t quarantined = 0;
static auto &used = *new std::map<int, size_t>, &most = *new std::map<int, size_t>;

size_t used_memory(int device) { return used[device]; }

static void check_guards(Address at, const Block &block) {
  const unsigned char *bytes = (const unsigned char *)at;
  for (size_t i = 0; i < GUARD; i++) {
    if (bytes[-1 - (long)i] != GUARD_BYTE) { problem("%zu bytes before an allocation of %zu bytes were written", i + 1, block.bytes); break; }
  }
  for (size_t i = 0; i < GUARD; i++) {
    if (bytes[block.bytes + i] != GUARD_BYTE) { problem("byte %zu behind the end of an allocation of %zu bytes was written", i, block.bytes); break; }
  }
}

static void give_back(Address at) {
  auto it = all_blocks.find(at);
  if (it == all_blocks.end()) return;
  const unsigned char *bytes = (const unsigned char *)at;
  for (size_t i = 0; i < it->second.bytes; i++) {
    if (bytes[i] != FRESH_BYTE) { problem("byte %zu of a freed allocation of %zu bytes was written", i, it->second.bytes); break; }
  }
  free((void *)(at - GUARD));
  all_blocks.erase(it);
}

Address allocate(int device, size_t bytes, Stream *stream) {
  if (used[device] + bytes > options().memory) return 0;
  Address at = 0;
  auto &free_list = reusable[{stream, bytes}];
  if (stream && !free_list.empty()) {
    // In stream order: what was given to the stream before the free is executed before what follows.
    at = free_list.back();
    free_list.pop_back();
    all_blocks[at].freed = false;
  } else {
    void *memory = nullptr;
    if (posix_memalign(&memory, 256, (bytes + 2 * GUARD + 255) / 256 * 256)) return 0;
    memset(memory, GUARD_BYTE, bytes + 2 * GUARD);
    at = (Address)memory + GUARD;
    memset((void *)at, FRESH_BYTE, bytes);
    all_blocks[at] = Block{bytes, device, stream, false};
  }
  used[device] += bytes;
  most[device] = std::max(most[device], used[device]);
  // Fresh memory is NaN from this place of the stream on, so that what writes to it before is lost.
  if (stream) stream->push([at, bytes] { memset((void *)at, FRESH_BYTE, bytes); });
  return at;
}

int release(Address at, Stream *stream) {
  auto it = all_blocks.find(at);
  if (it == all_blocks.end() || it->second.freed) { problem("memory at %lx is freed that is not allocated", (long)at); return INVALID_VALUE; }
  Block &block = it->second;
  block.freed = true;
  used[block.device] -= block.bytes;
  size_t bytes = block.bytes;
  auto poison = [at, bytes] { check_guards(at, all_blocks[at]); memset((void *)at, FRESH_BYTE, bytes); };
  if (stream && options().reuse) {
    stream->push(poison);
    reusable[{stream, bytes}].push_back(at);
    return SUCCESS;
  }
  auto watch = [at, bytes, poison] {
    poison();
    quarantine.push_back(at);
    quarantined += bytes;
    while (quarantined > QUARANTINE) {
      quarantined -= all_blocks[quarantine.front()].bytes;
      give_back(quarantine.front());
      quarantine.pop_front();
    }
  };
  if (stream) stream->push(watch); else watch();
  return SUCCESS;
}

// The allocation that an address lies in or at the end of, or none.
static const Block *block_of(Address address, Address *start) {
  auto it = all_blocks.upper_bound(address);
  if (it == all_blocks.begin()) return nullptr;
  --it;
  *start = it->first;
  return address <= it->first + it->second.bytes ? &it->second : nullptr;
}

bool check_range(Address address, size_t bytes, const char *use) {
  if (bytes == 0) return true;
  Address start;
  const Block *block = block_of(address, &start);
  if (!block) { problem("%s: %zu bytes at %lx are no device memory", use, bytes, (long)address); return false; }
  if (address + bytes > start + block->bytes) { problem("%s: %zu bytes at byte %zu of an allocation of %zu", use, bytes, size_t(address - start), block->bytes); return false; }
  return true;
}

void check_pointer(Address address, int device, const char *kernel, size_t argument) {
  if (!address) return;
  Address start;
  const Block *block = block_of(address, &start);
  if (!block) problem("kernel %s: argument %zu is no device memory", kernel, argument);
  else if (block->freed) problem("kernel %s: argument %zu was freed", kernel, argument);
  else if (block->device != device) problem("kernel %s on device %d: argument %zu is memory of device %d", kernel, device, argument, block->device);
}

std::string leaks() {
  size_t bytes = 0, n = 0;
  for (auto &[at, block] : all_blocks) {
    check_guards(at, block);
    if (!block.freed) { n++; bytes += block.bytes; }
  }
  return n ? std::to_string(n) + " allocations with " + std::to_string(bytes) + " bytes" : "";
}

// At the end of the process, after the program's own destructors.
__attribute__((destructor)) static void finish() {
  std::lock_guard<std::recursive_mutex> guard(lock());
  if (report().counts.empty()) return;
  if (!lost()) synchronise_all();
  for (auto at : quarantine) give_back(at);
  std::string leaked = leaks();
  if (!leaked.empty() && !lost()) problem("never freed: %s", leaked.c_str());
  auto &all = report().problems;
  if (!options().report.empty()) {
    auto quoted = [](const std::string &s) { std::string q = "\""; for (char c : s) { if (c == '"' || c == '\\') q += '\\'; q += c; } return q + "\""; };
    std::string text = "{\"problems\": [";
    for (size_t i = 0; i < all.size(); i++) text += (i ? ", " : "") + quoted(all[i]);
    text += "], \"most_memory\": " + std::to_string(most[0]) + ", \"counts\": {";
    bool comma = false;
    for (auto &[what, n] : report().counts) { text += (comma ? ", " : "") + quoted(what) + ": " + std::to_string(n); comma = true; }
    text += "}}\n";
    if (FILE *file = fopen(options().report.c_str(), "a")) { fwrite(text.data(), 1, text.size(), file); fclose(file); }
  }
  if (!all.empty()) { fprintf(stderr, "emulated GPU: %zu problems\n", all.size()); fflush(nullptr); _exit(86); }
}

}  // namespace emu
