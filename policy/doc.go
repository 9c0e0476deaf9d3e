// Package policy answers three questions for every part of redisguard, each in one way:
// what is watched ([Interest]), whom a job may touch ([Policy.May]), and how far a job
// may go ([Policy.Mode]).
//
// It is pure: a [Policy] is a value made from the config, the override, the off switch
// and the rights; the daemon keeps the one of now in an atomic pointer and makes another
// when one of these changes. Who lives in a namespace is handed in as [Occupants].
//
// # The promises
//
// They all stand in permit.go and are held by one table test and one property.
//
//   - No job touches what is not configured to be watched: [Interest.Wants] leaves out
//     loopback (unless configured) and our own probes.
//   - No job touches what was accepted ([Origin]): its other end is a client of this
//     process, whatever port it has.
//   - No job touches an orphan, a subflow of MPTCP, or a connection of our own.
//   - No job touches a connection of Redis itself (servers.go says who that is: by its name,
//     or by its own words, never by a port), or what [exclude] names, nor one that
//     such a process shares with others.
//   - No fence and no detour stands in a namespace where Redis listens or may listen: a
//     Sentinel that sees the world through a detour destroys the deployment it watches
//     (it has been seen to make the new primary a replica of itself). No namespace with
//     a Redis server, or what speaks for one, is tuned unless the config asks for that.
//   - What cannot be told (yet) never lets a job do more. What it means for each job is
//     one row of the table jobs.
//   - Each mode is a ceiling: of the config, of the target or the watched ports, of the
//     job, of the override, of --dry-run, of the off switch, of missing rights, the
//     strictest holds.
package policy
