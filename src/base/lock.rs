//! Locks, without the question of poison.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A panic elsewhere ends the process anyway, and what stands behind our locks is whole at every moment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that is replaced as a whole while others use it.
#[derive(Debug)]
pub struct Live<T>(Mutex<Arc<T>>);

impl<T> Live<T> {
    pub fn new(value: T) -> Live<T> {
        Live(Mutex::new(Arc::new(value)))
    }

    /// As it is now; whoever has it keeps it.
    pub fn get(&self) -> Arc<T> {
        lock(&self.0).clone()
    }

    pub fn set(&self, value: T) {
        *lock(&self.0) = Arc::new(value);
    }
}
