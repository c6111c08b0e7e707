"""Storage: WAL, memtable, segments, learned index files, manifest, recovery, compaction."""
