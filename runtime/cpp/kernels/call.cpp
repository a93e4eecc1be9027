#include "call.hpp"

#include <algorithm>
#include <cstring>

#include "pieces.hpp"
#include "shapes.hpp"

namespace adexport::kernels {

namespace {

// what is worth a thread of its own: about 20 microseconds
constexpr double flops_a_batch = 1e6;
constexpr double bytes_a_batch = 2e5;

// How many tokens a piece has at most: many, so that banks are read seldom, but enough pieces for some threads.
std::size_t most_tokens(std::size_t tokens) {
  return tokens >= 1024 ? 96 : 48;
}

std::size_t flow_bytes(Pair pair) {
  return same_types(pair) == Pair::float_float ? 4 : 2;
}
std::size_t bank_bytes(Pair pair) {
  return pair == Pair::float_float ? 4 : 2;
}

const void* row_of(const View& tensor, std::size_t row, std::size_t values, std::size_t bytes) {
  return tensor.there ? static_cast<const char*>(tensor.data) + row * values * bytes : nullptr;
}

std::size_t batches(std::size_t pieces, double flops, double bytes) {
  const double worth = flops / flops_a_batch + bytes / bytes_a_batch;
  return std::max<std::size_t>(1, std::min(pieces, static_cast<std::size_t>(std::min(worth, 1e6))));
}

template <class Task>
void run_pieces(const Pieces& pieces, std::size_t portions, const Pool& pool, const Task& task) {
  if (portions == 1) {
    for (std::size_t i = 0; i < pieces.size(); ++i)
      task(pieces[i], i + 1 < pieces.size() ? &pieces[i + 1] : nullptr);
    return;
  }
  struct Data {
    const Pieces& pieces;
    const Task& task;
  } data{pieces, task};
  pool.run(
      pieces.size(), portions,
      [](void* given, std::size_t index) {
        const Data& known = *static_cast<const Data*>(given);
        const bool last = index + 1 == known.pieces.size();
        known.task(known.pieces[index], last ? nullptr : &known.pieces[index + 1]);
      },
      &data);
}

}  // namespace

Rows::Rows(const char* where, const View& ids, std::size_t batch, std::size_t rows) : batch_(batch) {
  Shapes shapes(where);
  if (!ids.there) {
    one_ = rows == 1;
    if (rows != 1 && rows != batch) {
      shapes.add("the banks have " + std::to_string(rows) + " rows for a batch of " + std::to_string(batch) +
                 ": without ids they must have one for each row of the batch, or one for all");
    }
    shapes.done();
    return;
  }
  if (shapes.axes("ids", ids, 1) && ids.at(0) != 1 && ids.at(0) != batch) {
    shapes.add("ids has " + std::to_string(ids.at(0)) + " values, expected one for each of the " +
               std::to_string(batch) + " rows of the batch, or one for all");
  }
  shapes.done();
  ids_ = static_cast<const std::int64_t*>(ids.data);
  one_ = ids.at(0) == 1;
  for (std::size_t i = 0; i < ids.at(0); ++i) {
    if (ids_[i] >= 0 && static_cast<std::uint64_t>(ids_[i]) < rows) continue;
    shapes.add("adapter id " + std::to_string(ids_[i]) + " (row " + std::to_string(i) +
               " of the batch) is no row of the banks, which have " + std::to_string(rows) + " rows");
  }
  shapes.done();
}

std::size_t Rows::operator[](std::size_t row) const {
  const std::size_t at = one_ ? 0 : row;
  return ids_ == nullptr ? at : static_cast<std::size_t>(ids_[at]);
}

Rows LowRankCall::checked() const {
  Shapes shapes(where);
  // each in its turn, so that all that do not fit are named in this order
  const bool known_y = shapes.axes("y", y, 3);
  const bool known_x = shapes.axes("x", x, 3);
  const bool known_down = shapes.axes(down_bias.there ? "down" : "A", down, 3);
  if (!known_y || !known_x || !known_down) shapes.done();
  const Axis batch{y.at(0), "batch"};
  const Axis tokens{y.at(1), "tokens"};
  const Axis in{x.at(2), "in"};
  const Axis out{y.at(2), "out"};
  const Axis rows{down.at(0), "rows"};
  const bool bottleneck = down_bias.there;
  const Axis rank{down.at(2), bottleneck ? "width" : "rank"};
  shapes.sizes("x", x, {batch, tokens, in});
  shapes.sizes(bottleneck ? "down" : "A", down, {rows, in, rank});
  shapes.sizes(bottleneck ? "up" : "B", up, {rows, rank, out});
  shapes.sizes("bias", bias, {out});
  shapes.sizes("down_bias", down_bias, {rows, rank});
  shapes.sizes("up_bias", up_bias, {rows, out});
  shapes.sizes("code", code, {rows});
  shapes.done();
  return Rows(where, ids, batch.size, rows.size);
}

void LowRankCall::run(const Rows& rows, void* out, const Table& table, const Pool& pool) const {
  const std::size_t in = x.at(2);
  const std::size_t rank = down.at(2);
  const std::size_t features = y.at(2);
  const std::size_t flow = flow_bytes(pair);
  const std::size_t bank = bank_bytes(pair);
  const bool empty = rank == 0 && !up_bias.there;
  const Pieces pieces(rows, y.at(1), most_tokens(y.at(0) * y.at(1)));

  const auto one = [&](const Piece& piece, const Piece* next) {
    const std::size_t at = piece.token * features * flow;
    const void* from = static_cast<const char*>(y.data) + at;
    void* to = static_cast<char*>(out) + at;
    if (piece.skipped || empty || !used) {
      if (bias.there) {
        table[same_types(pair)].add({from, to, bias.data, piece.tokens, features});
      } else if (from != to) {
        std::memcpy(to, from, piece.tokens * features * flow);
      }
      return;
    }
    Activation activation = Activation::linear;
    if (activations != nullptr && !activations->empty()) {
      const auto count = static_cast<std::int64_t>(activations->size());
      const std::int64_t wanted = code.there ? static_cast<const std::int64_t*>(code.data)[piece.row] % count : 0;
      activation = (*activations)[static_cast<std::size_t>(wanted < 0 ? wanted + count : wanted)];
    }
    const bool another = next != nullptr && !next->skipped && next->row != piece.row;
    const void* next_down = another ? row_of(down, next->row, in * rank, bank) : nullptr;
    table[pair].low_rank(
        {from, to, bias.there ? bias.data : nullptr, static_cast<const char*>(x.data) + piece.token * in * flow,
         row_of(down, piece.row, in * rank, bank), row_of(down_bias, piece.row, rank, bank),
         row_of(up, piece.row, rank * features, bank), row_of(up_bias, piece.row, features, bank), piece.tokens, in,
         rank, features, activation, next_down, thread_scratch(scratch_floats(piece.tokens, rank))});
  };
  const auto tokens = static_cast<double>(y.at(0) * y.at(1));
  const auto matrices = static_cast<double>((in + features) * rank);
  const double moved = tokens * static_cast<double>((in + 2 * features) * flow) / 4;
  const double read = static_cast<double>(pieces.size()) * matrices * static_cast<double>(bank);
  const bool works = used && !empty;
  run_pieces(pieces, batches(pieces.size(), works ? 2 * tokens * matrices : 0, works ? moved + read : moved), pool,
             one);
}

Rows ElementwiseCall::checked() const {
  const char* name = scales ? "x" : "y";
  const char* other = scales ? "scale" : "bias";
  Shapes shapes(where);
  const bool known_x = shapes.axes(name, x, 3);
  const bool known_vector = shapes.axes(other, vector, 2);
  if (known_x && known_vector) shapes.sizes(other, vector, {{vector.at(0), "rows"}, {x.at(2), "features"}});
  shapes.done();
  return Rows(where, ids, x.at(0), vector.at(0));
}

void ElementwiseCall::run(const Rows& rows, void* out, const Table& table, const Pool& pool) const {
  const std::size_t features = x.at(2);
  const std::size_t flow = flow_bytes(pair);
  const Pieces pieces(rows, x.at(1), most_tokens(x.at(0) * x.at(1)));
  const auto apply = scales ? table[pair].scale : table[pair].add;
  const auto one = [&](const Piece& piece, const Piece*) {
    const std::size_t at = piece.token * features * flow;
    const void* from = static_cast<const char*>(x.data) + at;
    void* to = static_cast<char*>(out) + at;
    if (!piece.skipped) {
      apply({from, to, row_of(vector, piece.row, features, bank_bytes(pair)), piece.tokens, features});
    } else if (from != to) {
      std::memcpy(to, from, piece.tokens * features * flow);
    }
  };
  const double moved = static_cast<double>(x.at(0) * x.at(1) * features * flow) / 2;
  run_pieces(pieces, batches(pieces.size(), 0, moved), pool, one);
}

}  // namespace adexport::kernels
