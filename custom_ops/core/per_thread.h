// Memory of a thread that can be refused.
#pragma once

#include <pthread.h>

#include <memory>
#include <new>

namespace keras_lowbit {

// One T of each thread that asks for it, made at its first Get and gone with the thread. What thread_local lacks: where
// memory is short, Get throws std::bad_alloc; the first use of a thread_local in a thread ends the process. Meant for
// static objects, which live as long as the process.
template <class T>
class PerThread {
 public:
  PerThread() {
    if (pthread_key_create(&key_, [](void* mine) { delete static_cast<T*>(mine); }) != 0) throw std::bad_alloc();
  }
  PerThread(const PerThread&) = delete;
  PerThread& operator=(const PerThread&) = delete;

  T& Get() const {
    if (void* mine = pthread_getspecific(key_)) return *static_cast<T*>(mine);
    auto made = std::make_unique<T>();
    if (pthread_setspecific(key_, made.get()) != 0) throw std::bad_alloc();
    return *made.release();
  }

 private:
  pthread_key_t key_;
};

}  // namespace keras_lowbit
