#include "common/engine/ticket_codec.h"

namespace baton {

Ticket TicketFromProto(const v1::Ticket& proto) {
  return {.address = proto.transfer_address(),
          .incarnation = Incarnation{proto.incarnation()},
          .lease = LeaseId{proto.lease()},
          .nonce = {.high = proto.nonce_high(), .low = proto.nonce_low()},
          .epoch = Epoch{proto.epoch()},
          .held_tokens = proto.held_tokens(),
          .prompt_tokens = proto.prompt_tokens(),
          .layout_fingerprint = proto.layout_fingerprint(),
          .shard_heads = proto.shard_heads()};
}

v1::Ticket TicketToProto(const Ticket& ticket) {
  v1::Ticket proto;
  proto.set_transfer_address(ticket.address);
  proto.set_incarnation(Raw(ticket.incarnation));
  proto.set_lease(Raw(ticket.lease));
  proto.set_nonce_high(ticket.nonce.high);
  proto.set_nonce_low(ticket.nonce.low);
  proto.set_epoch(Raw(ticket.epoch));
  proto.set_held_tokens(ticket.held_tokens);
  proto.set_prompt_tokens(ticket.prompt_tokens);
  proto.set_layout_fingerprint(ticket.layout_fingerprint);
  proto.set_shard_heads(ticket.shard_heads);
  return proto;
}

v1::WorkerLoad LoadFromCounts(const BlockCounts& counts) {
  v1::WorkerLoad load;
  load.set_blocks_total(counts.total);
  load.set_blocks_free(counts.free);
  load.set_blocks_cached(counts.cached);
  load.set_blocks_in_use(counts.in_use);
  load.set_blocks_receiving(counts.receiving);
  load.set_blocks_quarantined(counts.quarantined);
  return load;
}

}  // namespace baton
