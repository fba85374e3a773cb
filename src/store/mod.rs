//! Where rows go: one folder a store. A store writes bytes and statements, and decides nothing.

pub mod postgres;
