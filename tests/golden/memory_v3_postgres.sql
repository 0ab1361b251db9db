CREATE TABLE budget_counters (
	scope TEXT NOT NULL,
	calls BIGINT NOT NULL,
	tokens BIGINT NOT NULL,
	nanodollars BIGINT NOT NULL,
	PRIMARY KEY (scope)
);
CREATE TABLE calls (
	call_id BIGSERIAL NOT NULL,
	run_id TEXT NOT NULL,
	day TEXT NOT NULL,
	user_id TEXT NOT NULL,
	partition_index INTEGER NOT NULL,
	stage TEXT NOT NULL,
	model TEXT NOT NULL,
	prompt_version TEXT NOT NULL,
	outcome TEXT,
	input_tokens BIGINT NOT NULL,
	output_tokens BIGINT NOT NULL,
	cached_tokens BIGINT NOT NULL,
	nanodollars BIGINT NOT NULL,
	seconds DOUBLE PRECISION NOT NULL,
	reserved_time BIGINT NOT NULL,
	settled_time BIGINT,
	PRIMARY KEY (call_id)
);
CREATE INDEX ix_calls_run_id ON calls (run_id);
CREATE TABLE leases (
	name TEXT NOT NULL,
	owner TEXT,
	until BIGINT NOT NULL,
	number BIGINT NOT NULL,
	PRIMARY KEY (name)
);
CREATE TABLE publications (
	publication_id BIGSERIAL NOT NULL,
	stage TEXT NOT NULL,
	created_time BIGINT NOT NULL,
	done_time BIGINT,
	PRIMARY KEY (publication_id)
);
CREATE INDEX publications_begun ON publications (publication_id) WHERE done_time IS NULL;
CREATE TABLE runs (
	run_id BIGSERIAL NOT NULL,
	finished_time BIGINT NOT NULL,
	report TEXT NOT NULL,
	PRIMARY KEY (run_id)
);
CREATE TABLE settings (
	name TEXT NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (name)
);
CREATE TABLE tombstones (
	user_hash TEXT NOT NULL,
	forgotten_time BIGINT NOT NULL,
	until_time BIGINT NOT NULL,
	refused_count INTEGER DEFAULT '0' NOT NULL,
	PRIMARY KEY (user_hash)
);
CREATE TABLE users (
	user_key BIGSERIAL NOT NULL,
	user_id TEXT COLLATE "C" NOT NULL,
	partition_count INTEGER NOT NULL,
	sealed_time BIGINT,
	sealed_behavior_id TEXT COLLATE "C",
	seal_time BIGINT,
	late_count INTEGER NOT NULL,
	duplicate_count INTEGER NOT NULL,
	behavior_count INTEGER DEFAULT '0' NOT NULL,
	ahead_count INTEGER DEFAULT '0' NOT NULL,
	tied_count INTEGER DEFAULT '0' NOT NULL,
	sequence_number BIGINT DEFAULT '0' NOT NULL,
	sequence_published BIGINT DEFAULT '0' NOT NULL,
	forgotten_time BIGINT,
	PRIMARY KEY (user_key),
	UNIQUE (user_id)
);
CREATE TABLE behaviors (
	user_key BIGINT NOT NULL,
	behavior_id TEXT COLLATE "C" NOT NULL,
	item_id TEXT NOT NULL,
	rating DOUBLE PRECISION NOT NULL,
	event_time BIGINT NOT NULL,
	order_time BIGINT NOT NULL,
	partition_index INTEGER,
	PRIMARY KEY (user_key, behavior_id),
	FOREIGN KEY(user_key) REFERENCES users (user_key)
);
CREATE INDEX behaviors_by_time ON behaviors (user_key, event_time, behavior_id);
CREATE INDEX behaviors_cached ON behaviors (user_key) WHERE partition_index IS NULL;
CREATE TABLE partitions (
	user_key BIGINT NOT NULL,
	partition_index INTEGER NOT NULL,
	partition_hash TEXT NOT NULL,
	behavior_count INTEGER NOT NULL,
	first_time BIGINT NOT NULL,
	last_time BIGINT NOT NULL,
	seal_time BIGINT NOT NULL,
	condition TEXT NOT NULL,
	attempts INTEGER NOT NULL,
	failure TEXT,
	pushed_time BIGINT,
	online_time BIGINT,
	PRIMARY KEY (user_key, partition_index),
	FOREIGN KEY(user_key) REFERENCES users (user_key)
);
CREATE INDEX partitions_online ON partitions (online_time) WHERE online_time IS NOT NULL;
CREATE TABLE published (
	stage TEXT NOT NULL,
	version TEXT NOT NULL,
	user_key BIGINT NOT NULL,
	partition_index INTEGER NOT NULL,
	publication_id BIGINT NOT NULL,
	text_id BIGINT,
	index_sum BIGINT,
	PRIMARY KEY (stage, version, user_key, partition_index),
	FOREIGN KEY(publication_id) REFERENCES publications (publication_id)
);
CREATE INDEX ix_published_publication_id ON published (publication_id);
CREATE TABLE waiting (
	user_key BIGINT NOT NULL,
	number BIGINT NOT NULL,
	since BIGINT NOT NULL,
	not_before BIGINT DEFAULT '0' NOT NULL,
	lease_owner TEXT,
	lease_until BIGINT,
	claim_count INTEGER DEFAULT '0' NOT NULL,
	PRIMARY KEY (user_key),
	FOREIGN KEY(user_key) REFERENCES users (user_key)
);
CREATE INDEX waiting_by_time ON waiting (since);
CREATE TABLE recomputations (
	user_key BIGINT NOT NULL,
	partition_index INTEGER NOT NULL,
	stage TEXT NOT NULL,
	asked_time BIGINT NOT NULL,
	PRIMARY KEY (user_key, partition_index, stage),
	FOREIGN KEY(user_key, partition_index) REFERENCES partitions (user_key, partition_index)
);
CREATE TABLE texts (
	text_id BIGSERIAL NOT NULL,
	user_key BIGINT NOT NULL,
	partition_index INTEGER NOT NULL,
	stage TEXT NOT NULL,
	partition_hash TEXT NOT NULL,
	prompt_version TEXT NOT NULL,
	model TEXT NOT NULL,
	previous_partition_index INTEGER,
	text TEXT NOT NULL,
	text_hash TEXT NOT NULL,
	input_tokens INTEGER NOT NULL,
	output_tokens INTEGER NOT NULL,
	cached_tokens INTEGER NOT NULL,
	seconds DOUBLE PRECISION NOT NULL,
	created_time BIGINT NOT NULL,
	revision INTEGER NOT NULL,
	PRIMARY KEY (text_id),
	FOREIGN KEY(user_key, partition_index) REFERENCES partitions (user_key, partition_index),
	UNIQUE (user_key, partition_index, stage, partition_hash, prompt_version, model, revision)
);
CREATE INDEX ix_texts_text_hash ON texts (text_hash);
CREATE TABLE text_vectors (
	text_id BIGINT NOT NULL,
	encoder_version TEXT NOT NULL,
	vector BYTEA NOT NULL,
	PRIMARY KEY (text_id, encoder_version),
	FOREIGN KEY(text_id) REFERENCES texts (text_id)
);
