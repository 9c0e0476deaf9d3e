// Package sysctl gives network namespaces sane TCP limits, and takes them back.
//
// A new network namespace starts from the kernel's compiled-in defaults, whatever
// the host's values are; so each one is tuned by itself. [Plan] compares what is
// with what should be and is pure. [Store.Apply] writes the original values to a
// file before it writes the first new one, and [Store.Restore] brings them back,
// also after a kill at any moment in between. Only values that still are the
// kernel's default, or ours, are written: what somebody has chosen is theirs.
//
// [Meaning] says in seconds what a namespace's values amount to, by the kernel's
// own rules.
package sysctl
