// Package arch holds the tests of the architecture: who may import whom, and
// other rules of the house that a compiler does not check.
package arch
