// Package proc tells whose a socket is: socket inode to process, process to
// cgroup, cgroup to systemd unit or pod.
//
// It reads /proc and nothing else but the names of the directories in
// /var/log/pods. Processes come and go while it reads, so a file that is not
// there (any more) is an ordinary answer, which Gone tells from a failure. What
// /proc says in the words of the workload (comm, exe, the names in a cgroup that
// was delegated) proves nothing: it is good for a display, escaped by Safe, and
// may make us do less, never more. /proc/<pid>/mountinfo is not read at all, as a
// workload can write what it likes into it.
//
// Each file has a function that gets it and one that parses its bytes.
package proc
