// Tickets and pool counts between the sessions' messages and the engine's values. Pure.
#ifndef BATON_COMMON_ENGINE_TICKET_CODEC_H_
#define BATON_COMMON_ENGINE_TICKET_CODEC_H_

#include "common/kv_cache/block_pool.h"
#include "common/kv_transfer/ticket.h"
#include "proto/types.pb.h"
#include "proto/worker.pb.h"

namespace baton {

Ticket TicketFromProto(const v1::Ticket& proto);
v1::Ticket TicketToProto(const Ticket& ticket);
v1::WorkerLoad LoadFromCounts(const BlockCounts& counts);

}  // namespace baton

#endif  // BATON_COMMON_ENGINE_TICKET_CODEC_H_
