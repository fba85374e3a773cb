//! Locks, without the question of poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic elsewhere ends the process anyway, and what stands behind our locks is whole at every moment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
