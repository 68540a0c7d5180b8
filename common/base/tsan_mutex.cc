// Shows ThreadSanitizer the synchronisation of absl::Mutex and absl::Notification, which it cannot
// see because Debian's Abseil is not instrumented: without this every lock looks like a race.
//
// Built only with BATON_SANITIZE=thread. The linker directs our calls of each function here by
// --wrap (see CMakeLists.txt); the original is __real_<its mangled name>. See
// sanitizer/tsan_interface.h.
#include <sanitizer/tsan_interface.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

// The names that Debian's Abseil has: everything lives in the inline namespace debian3.
#define BATON_MUTEX(name) _ZN4absl7debian35Mutex##name
#define BATON_NOTIFICATION(name) _ZN4absl7debian312Notification##name
#define BATON_CONST_NOTIFICATION(name) _ZNK4absl7debian312Notification##name
#define BATON_JOIN_IMPL(a, b) a##b
#define BATON_JOIN(a, b) BATON_JOIN_IMPL(a, b)
#define BATON_REAL(symbol) BATON_JOIN(__real_, symbol)
#define BATON_WRAP(symbol) BATON_JOIN(__wrap_, symbol)

namespace {

// A condition is looked at by whoever holds the lock, also inside Abseil, where no wrapper is
// passed.
struct Evaluation {
  absl::Mutex* mutex;
  const absl::Condition* condition;
};

bool Evaluate(Evaluation* evaluation) {
  __tsan_acquire(evaluation->mutex);
  const bool met = evaluation->condition->Eval();
  __tsan_release(evaluation->mutex);
  return met;
}

}  // namespace

#define BATON_ACQUIRING(name)                               \
  void BATON_REAL(BATON_MUTEX(name))(absl::Mutex*);         \
  void BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex);  \
  void BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex) { \
    BATON_REAL(BATON_MUTEX(name))(mutex);                   \
    __tsan_acquire(mutex);                                  \
  }

#define BATON_TRYING(name)                                   \
  bool BATON_REAL(BATON_MUTEX(name))(absl::Mutex*);          \
  bool BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex);   \
  bool BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex) {  \
    const bool taken = BATON_REAL(BATON_MUTEX(name))(mutex); \
    if (taken) __tsan_acquire(mutex);                        \
    return taken;                                            \
  }

#define BATON_RELEASING(name)                               \
  void BATON_REAL(BATON_MUTEX(name))(absl::Mutex*);         \
  void BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex);  \
  void BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex) { \
    __tsan_release(mutex);                                  \
    BATON_REAL(BATON_MUTEX(name))(mutex);                   \
  }

#define BATON_WAITING(name)                                                                   \
  void BATON_REAL(BATON_MUTEX(name))(absl::Mutex*, const absl::Condition&);                   \
  void BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex, const absl::Condition& condition);  \
  void BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex, const absl::Condition& condition) { \
    Evaluation evaluation = {mutex, &condition};                                              \
    const absl::Condition watched(&Evaluate, &evaluation);                                    \
    __tsan_release(mutex);                                                                    \
    BATON_REAL(BATON_MUTEX(name))(mutex, watched);                                            \
    __tsan_acquire(mutex);                                                                    \
  }

#define BATON_WAITING_UNTIL(name, Limit)                                                    \
  bool BATON_REAL(BATON_MUTEX(name))(absl::Mutex*, const absl::Condition&, Limit);          \
  bool BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex, const absl::Condition& condition, \
                                     Limit limit);                                          \
  bool BATON_WRAP(BATON_MUTEX(name))(absl::Mutex * mutex, const absl::Condition& condition, \
                                     Limit limit) {                                         \
    Evaluation evaluation = {mutex, &condition};                                            \
    const absl::Condition watched(&Evaluate, &evaluation);                                  \
    __tsan_release(mutex);                                                                  \
    const bool met = BATON_REAL(BATON_MUTEX(name))(mutex, watched, limit);                  \
    __tsan_acquire(mutex);                                                                  \
    return met;                                                                             \
  }

extern "C" {

BATON_ACQUIRING(4LockEv)
BATON_ACQUIRING(10ReaderLockEv)
BATON_TRYING(7TryLockEv)
BATON_TRYING(13ReaderTryLockEv)
BATON_RELEASING(6UnlockEv)
BATON_RELEASING(12ReaderUnlockEv)
BATON_WAITING(5AwaitERKNS0_9ConditionE)
BATON_WAITING(8LockWhenERKNS0_9ConditionE)
BATON_WAITING_UNTIL(16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE, absl::Duration)
BATON_WAITING_UNTIL(17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE, absl::Time)

void BATON_REAL(BATON_NOTIFICATION(6NotifyEv))(absl::Notification*);
void BATON_WRAP(BATON_NOTIFICATION(6NotifyEv))(absl::Notification* notification);
void BATON_WRAP(BATON_NOTIFICATION(6NotifyEv))(absl::Notification* notification) {
  __tsan_release(notification);
  BATON_REAL(BATON_NOTIFICATION(6NotifyEv))(notification);
}

void BATON_REAL(BATON_CONST_NOTIFICATION(19WaitForNotificationEv))(absl::Notification*);
void BATON_WRAP(BATON_CONST_NOTIFICATION(19WaitForNotificationEv))(
    absl::Notification* notification);
void BATON_WRAP(BATON_CONST_NOTIFICATION(19WaitForNotificationEv))(
    absl::Notification* notification) {
  BATON_REAL(BATON_CONST_NOTIFICATION(19WaitForNotificationEv))(notification);
  __tsan_acquire(notification);
}

bool BATON_REAL(BATON_CONST_NOTIFICATION(30WaitForNotificationWithTimeoutENS0_8DurationE))(
    absl::Notification*, absl::Duration);
bool BATON_WRAP(BATON_CONST_NOTIFICATION(30WaitForNotificationWithTimeoutENS0_8DurationE))(
    absl::Notification* notification, absl::Duration timeout);
bool BATON_WRAP(BATON_CONST_NOTIFICATION(30WaitForNotificationWithTimeoutENS0_8DurationE))(
    absl::Notification* notification, absl::Duration timeout) {
  const bool notified =
      BATON_REAL(BATON_CONST_NOTIFICATION(30WaitForNotificationWithTimeoutENS0_8DurationE))(
          notification, timeout);
  if (notified) __tsan_acquire(notification);
  return notified;
}

}  // extern "C"
