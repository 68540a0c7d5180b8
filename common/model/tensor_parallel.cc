#include "common/model/tensor_parallel.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/await_change.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

constexpr uint32_t kAllLayers = std::numeric_limits<uint32_t>::max();

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(std::span<Device* const> devices,
                                                   const ModelOptions& options) {
  if (devices.size() == 1) return Load(*devices[0], options);
  return TensorParallelModel::Load(devices, options);
}

absl::StatusOr<std::unique_ptr<TensorParallelModel>> TensorParallelModel::Load(
    std::span<Device* const> devices, const ModelOptions& options) {
  if (options.pin_threads) {
    return absl::InvalidArgumentError(
        "--pin_threads does not go with --tp: the ranks would share their processors");
  }
  BATON_ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Collective>> collectives,
                         MakeCollectives(devices));
  std::unique_ptr<TensorParallelModel> model(new TensorParallelModel(std::move(collectives)));
  BATON_ASSIGN_OR_RETURN(model->config_, ModelConfig::Load(options.directory));
  BATON_RETURN_IF_ERROR(model->LoadRanks(devices, options));
  model->config_.stored_dtype = model->first().config().stored_dtype;
  model->numerics_ = absl::StrCat(model->first().numerics(), "/tp", devices.size());
  for (size_t i = 1; i < model->ranks_.size(); ++i) {
    Rank& rank = *model->ranks_[i];
    rank.thread = std::thread([model = model.get(), &rank] { model->RankMain(rank); });
  }
  return model;
}

TensorParallelModel::TensorParallelModel(std::vector<std::unique_ptr<Collective>> collectives) {
  for (std::unique_ptr<Collective>& collective : collectives) {
    ranks_.push_back(std::make_unique<Rank>());
    ranks_.back()->collective = std::move(collective);
  }
}

TensorParallelModel::~TensorParallelModel() {
  stopping_.store(true);
  calls_.fetch_add(1);
  calls_.notify_all();
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    if (rank->thread.joinable()) rank->thread.join();
  }
}

absl::Status TensorParallelModel::LoadRanks(std::span<Device* const> devices,
                                            const ModelOptions& options) {
  ModelOptions own = options;
  own.threads = std::max<uint32_t>(1, options.threads / static_cast<uint32_t>(devices.size()));
  const auto load = [&](size_t i) {
    Rank& rank = *ranks_[i];
    ModelOptions rank_options = own;
    if (i > 0) rank_options.progress = nullptr;
    auto decoder = Decoder::Load(*devices[i], rank_options, rank.collective.get());
    rank.status = decoder.status();
    if (decoder.ok()) rank.decoder = *std::move(decoder);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < devices.size(); ++i) threads.emplace_back(load, i);
  load(0);
  for (std::thread& thread : threads) thread.join();
  return FirstError();
}

absl::Status TensorParallelModel::Reserve(const KvArena& cache, uint32_t sequences_max) {
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    BATON_RETURN_IF_ERROR(rank->decoder->Reserve(cache, sequences_max));
  }
  return absl::OkStatus();
}

absl::Status TensorParallelModel::Forward(std::span<const BatchRow> rows, KvArena& cache,
                                          std::span<float> logits, const LayerDone& layer_done) {
  const size_t vocab = config_.vocab_size;
  if (logits.size() % vocab != 0) {
    return absl::InvalidArgumentError("batch: room for half a row of logits");
  }
  // What is wrong for one is wrong for all: no rank begins what another one refuses.
  BATON_RETURN_IF_ERROR(first().CheckCall(rows, cache, logits.size() / vocab));
  return Run(
      [&](Decoder& decoder, const LayerDone& done) {
        return decoder.Forward(rows, cache, logits, done);
      },
      [&](Decoder& decoder, const LayerDone& done) { return decoder.RunBeside(rows, cache, done); },
      layer_done);
}

absl::Status TensorParallelModel::ForwardAndSample(std::span<const BatchRow> rows, KvArena& cache,
                                                   const TokenChoice& choice,
                                                   const LayerDone& layer_done) {
  BATON_RETURN_IF_ERROR(first().CheckCall(rows, cache, choice.samples.size()));
  return Run(
      [&](Decoder& decoder, const LayerDone& done) {
        return decoder.ForwardAndSample(rows, cache, choice, done);
      },
      [&](Decoder& decoder, const LayerDone& done) { return decoder.RunBeside(rows, cache, done); },
      layer_done);
}

absl::Status TensorParallelModel::StartStep(std::span<const DecodeRow> rows, KvArena& cache,
                                            std::span<const SampleRow> samples,
                                            std::span<const LogitEdit> edits) {
  BATON_RETURN_IF_ERROR(first().CheckCall(Decoder::RowsOf(rows), cache, samples.size()));
  return Run([&](Decoder& decoder,
                 const LayerDone&) { return decoder.StartPart(rows, cache, samples, edits); },
             [&](Decoder& decoder, const LayerDone&) {
               return decoder.StartPart(rows, cache, /*samples=*/{}, /*edits=*/{});
             });
}

// Every rank waits for its own device: that is where it learns that the device has failed.
absl::Status TensorParallelModel::FinishStep(std::span<TokenId> tokens) {
  return Run([&](Decoder& decoder, const LayerDone&) { return decoder.FinishStep(tokens); },
             [&](Decoder& decoder, const LayerDone&) {
               std::vector<TokenId> same_tokens(tokens.size());
               return decoder.FinishStep(same_tokens);
             });
}

absl::Status TensorParallelModel::Run(Part first_part, Part other_part,
                                      const LayerDone& layer_done) {
  if (failed_.load()) return FirstError();
  call_ = {.part = &other_part, .reports_layers = layer_done != nullptr};
  for (const std::unique_ptr<Rank>& rank : ranks_) rank->layers.store(0);
  running_.store(static_cast<uint32_t>(ranks_.size()) - 1);
  calls_.fetch_add(1);
  calls_.notify_all();
  LayerDone all_done;
  if (layer_done != nullptr) {
    all_done = [&](uint32_t layer) {
      if (AwaitLayer(layer)) layer_done(layer);
    };
  }
  ranks_[0]->status = first_part(*ranks_[0]->decoder, all_done);
  End(*ranks_[0]);
  for (uint32_t left = running_.load(); left > 0;) left = AwaitChange(running_, left);
  if (failed_.load()) {
    for (const std::unique_ptr<Rank>& rank : ranks_) rank->decoder->AwaitDevice().IgnoreError();
  }
  return FirstError();
}

void TensorParallelModel::RankMain(Rank& rank) {
  LayerDone report = [&rank](uint32_t layer) {
    rank.layers.store(layer + 1);
    rank.layers.notify_one();
  };
  for (uint32_t call = 0;;) {
    call = AwaitChange(calls_, call);
    if (stopping_.load()) return;
    rank.status = (*call_.part)(*rank.decoder, call_.reports_layers ? report : nullptr);
    End(rank);
    if (running_.fetch_sub(1) == 1) running_.notify_one();
  }
}

void TensorParallelModel::End(Rank& rank) {
  if (!rank.status.ok()) {
    failed_.store(true);
    rank.collective->Abort();
  }
  rank.layers.store(kAllLayers);
  rank.layers.notify_one();
}

bool TensorParallelModel::AwaitLayer(uint32_t layer) const {
  for (size_t i = 1; i < ranks_.size(); ++i) {
    const std::atomic<uint32_t>& layers = ranks_[i]->layers;
    for (uint32_t done = layers.load(); done <= layer;) done = AwaitChange(layers, done);
  }
  return !failed_.load();
}

absl::Status TensorParallelModel::Health() const {
  if (failed_.load()) return FirstError();
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    BATON_RETURN_IF_ERROR(rank->decoder->Health());
  }
  return absl::OkStatus();
}

// The others' errors are only that they were left alone.
absl::Status TensorParallelModel::FirstError() const {
  absl::Status error;
  for (const std::unique_ptr<Rank>& rank : ranks_) {
    if (!rank->status.ok() && (error.ok() || absl::IsAborted(error))) error = rank->status;
  }
  return error;
}

}  // namespace baton
