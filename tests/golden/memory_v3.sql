BEGIN TRANSACTION;
CREATE TABLE behaviors (
	user_key BIGINT NOT NULL, 
	behavior_id TEXT NOT NULL, 
	item_id TEXT NOT NULL, 
	rating DOUBLE NOT NULL, 
	event_time BIGINT NOT NULL, 
	order_time BIGINT NOT NULL, 
	partition_index INTEGER, 
	PRIMARY KEY (user_key, behavior_id), 
	FOREIGN KEY(user_key) REFERENCES users (user_key)
)
 WITHOUT ROWID

;
INSERT INTO "behaviors" VALUES(1,'000000000','a0',2.0,1577836800000000,1577836800000000,0);
INSERT INTO "behaviors" VALUES(1,'000000001','a1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(1,'000000002','a2',4.0,1577836802000000,1577836802000000,1);
INSERT INTO "behaviors" VALUES(1,'000000003','a3',2.0,1577836803000000,1577836803000000,1);
INSERT INTO "behaviors" VALUES(1,'000000004','a4',4.0,1577836804000000,1577836804000000,2);
INSERT INTO "behaviors" VALUES(1,'000000005','a5',4.0,1577836805000000,1577836805000000,2);
INSERT INTO "behaviors" VALUES(1,'000000006','a6',2.0,1577836806000000,1577836806000000,3);
INSERT INTO "behaviors" VALUES(1,'000000008','a8',4.0,1577836808000000,1577836808000000,3);
INSERT INTO "behaviors" VALUES(1,'000000009','a9',4.0,1577836809000000,1577836809000000,NULL);
INSERT INTO "behaviors" VALUES(2,'000000000','b0',2.0,1577836800000000,1577836800000000,0);
INSERT INTO "behaviors" VALUES(2,'000000001','b1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(2,'000000002','b2',4.0,1577836802000000,1577836802000000,1);
INSERT INTO "behaviors" VALUES(2,'000000003','b3',2.0,1577836803000000,1577836803000000,1);
INSERT INTO "behaviors" VALUES(2,'000000004','b4',4.0,1577836804000000,1577836804000000,2);
INSERT INTO "behaviors" VALUES(2,'000000005','b5',4.0,1577836805000000,1577836805000000,2);
INSERT INTO "behaviors" VALUES(2,'000000006','b6',2.0,1577836806000000,1577836806000000,NULL);
INSERT INTO "behaviors" VALUES(4,'000000008','d8',4.0,1577836808000000,1577836808000000,0);
INSERT INTO "behaviors" VALUES(4,'000000009','d9',4.0,1577836809000000,1577836809000000,0);
CREATE TABLE budget_counters (
	scope TEXT NOT NULL, 
	calls BIGINT NOT NULL, 
	tokens BIGINT NOT NULL, 
	nanodollars BIGINT NOT NULL, 
	PRIMARY KEY (scope)
);
CREATE TABLE calls (
	call_id INTEGER NOT NULL, 
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
	seconds DOUBLE NOT NULL, 
	reserved_time BIGINT NOT NULL, 
	settled_time BIGINT, 
	PRIMARY KEY (call_id)
);
CREATE TABLE leases (
	name TEXT NOT NULL, 
	owner TEXT, 
	until BIGINT NOT NULL, 
	number BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('publish',NULL,0,1);
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
INSERT INTO "partitions" VALUES(1,0,'2320386103b9899e398d357bf6f3943d',2,1577836800000000,1577836801000000,1577836801000001,'count(2)',1,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,1,'a7b469094efdf4afe861d63173b3d251',2,1577836802000000,1577836803000000,1577836803000001,'count(2)',2,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,2,'95ea97ce0151dfa6b15b8099ec51aa25',2,1577836804000000,1577836805000000,1577836805000001,'count(2)',2,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,0,'e1d1a627f5898b6b114b7974a511ba5a',2,1577836800000000,1577836801000000,1577836801000001,'count(2)',1,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,1,'4219d65db9b7bd5fceec441827a54f8c',2,1577836802000000,1577836803000000,1577836803000001,'count(2)',2,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,2,'6553ff6fb381621a595082778d505b34',2,1577836804000000,1577836805000000,1577836805000001,'count(2)',2,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,3,'7e75e43af69e320faddf7ef4c1a937df',2,1577836806000000,1577836808000000,1577836808000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(4,0,'38dcab1b31d4795b11b80c7d06eaf40c',2,1577836808000000,1577836809000000,1577836809000001,'count(2)',0,NULL,NULL,NULL);
CREATE TABLE publications (
	publication_id INTEGER NOT NULL, 
	stage TEXT NOT NULL, 
	created_time BIGINT NOT NULL, 
	done_time BIGINT, 
	PRIMARY KEY (publication_id)
);
INSERT INTO "publications" VALUES(1,'summary',2577836818000000,2577836819000000);
INSERT INTO "publications" VALUES(2,'shift',2577836818000000,2577836820000000);
INSERT INTO "publications" VALUES(3,'vector',2577836818000000,2577836821000000);
INSERT INTO "publications" VALUES(4,'fused',2577836818000000,2577836822000000);
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
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,0,1,1,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,1,1,2,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,2,1,3,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,0,1,4,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,1,1,5,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,2,1,6,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,1,2,10,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,2,2,11,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,1,2,12,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,2,2,13,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,0,3,1,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,1,3,10,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,2,3,11,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,0,3,4,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,1,3,12,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,2,3,13,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,0,4,1,1);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,1,4,10,3);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,2,4,11,5);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,0,4,4,1);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,1,4,12,3);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,2,4,13,5);
CREATE TABLE recomputations (
	user_key BIGINT NOT NULL, 
	partition_index INTEGER NOT NULL, 
	stage TEXT NOT NULL, 
	asked_time BIGINT NOT NULL, 
	PRIMARY KEY (user_key, partition_index, stage), 
	FOREIGN KEY(user_key, partition_index) REFERENCES partitions (user_key, partition_index)
);
CREATE TABLE runs (
	run_id INTEGER NOT NULL, 
	finished_time BIGINT NOT NULL, 
	report TEXT NOT NULL, 
	PRIMARY KEY (run_id)
);
CREATE TABLE settings (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('memory_id','f126da02a5234812940d8a2811b6c838');
INSERT INTO "settings" VALUES('tombstone_key','c4fa835983050232b82c3608424a0b356e8f06ae61da7317ff26568b6b4ae5ec');
INSERT INTO "settings" VALUES('schema_version','3');
INSERT INTO "settings" VALUES('item_id_type','string');
INSERT INTO "settings" VALUES('user_id_type','string');
INSERT INTO "settings" VALUES('vector_in_use','0/tiny');
INSERT INTO "settings" VALUES('fused_in_use','0/mean/tiny');
ANALYZE "sqlite_master";
INSERT INTO "sqlite_stat1" VALUES('behaviors','behaviors','1000000 1000 1');
INSERT INTO "sqlite_stat1" VALUES('behaviors','behaviors_cached','20000 10');
INSERT INTO "sqlite_stat1" VALUES('behaviors','behaviors_by_time','1000000 1000 1 1');
CREATE TABLE text_vectors (
	text_id BIGINT NOT NULL, 
	encoder_version TEXT NOT NULL, 
	vector BLOB NOT NULL, 
	PRIMARY KEY (text_id, encoder_version), 
	FOREIGN KEY(text_id) REFERENCES texts (text_id)
);
INSERT INTO "text_vectors" VALUES(1,'tiny',X'00005B4300007343');
INSERT INTO "text_vectors" VALUES(2,'tiny',X'000098420000EC42');
INSERT INTO "text_vectors" VALUES(3,'tiny',X'00000C4300004C42');
INSERT INTO "text_vectors" VALUES(4,'tiny',X'0000C2420000DC42');
INSERT INTO "text_vectors" VALUES(5,'tiny',X'0000434300005B43');
INSERT INTO "text_vectors" VALUES(6,'tiny',X'00004C430000B242');
INSERT INTO "text_vectors" VALUES(10,'tiny',X'0000444300004040');
INSERT INTO "text_vectors" VALUES(11,'tiny',X'00000B4300004C42');
INSERT INTO "text_vectors" VALUES(12,'tiny',X'00003E4300008041');
INSERT INTO "text_vectors" VALUES(13,'tiny',X'0000D84100007143');
CREATE TABLE texts (
	text_id INTEGER NOT NULL, 
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
	seconds DOUBLE NOT NULL, 
	created_time BIGINT NOT NULL, 
	revision INTEGER NOT NULL, 
	PRIMARY KEY (text_id), 
	FOREIGN KEY(user_key, partition_index) REFERENCES partitions (user_key, partition_index), 
	UNIQUE (user_key, partition_index, stage, partition_hash, prompt_version, model, revision)
);
INSERT INTO "texts" VALUES(1,1,0,'summary','2320386103b9899e398d357bf6f3943d','test-1','echo-1',NULL,'ann likes the a0, the a1','727737ed1bf87b90c9d69c86d75387c3',3,2,0,0.0,2577836801000000,0);
INSERT INTO "texts" VALUES(2,1,1,'summary','a7b469094efdf4afe861d63173b3d251','test-1','echo-1',NULL,'ann likes the a2, the a3','7b319041d4bdae8ac717e30b1a6c4b56',3,2,0,0.0,2577836802000000,0);
INSERT INTO "texts" VALUES(3,1,2,'summary','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',NULL,'ann likes the a4, the a5','3b59a87221f11cba4dc624e39757468a',3,2,0,0.0,2577836803000000,0);
INSERT INTO "texts" VALUES(4,2,0,'summary','e1d1a627f5898b6b114b7974a511ba5a','test-1','echo-1',NULL,'bob likes the b0, the b1','738602ea12fc156541ce18182188ef22',3,2,0,0.0,2577836804000000,0);
INSERT INTO "texts" VALUES(5,2,1,'summary','4219d65db9b7bd5fceec441827a54f8c','test-1','echo-1',NULL,'bob likes the b2, the b3','090a28a6d5367477e57ff93f0a436aab',3,2,0,0.0,2577836805000000,0);
INSERT INTO "texts" VALUES(6,2,2,'summary','6553ff6fb381621a595082778d505b34','test-1','echo-1',NULL,'bob likes the b4, the b5','76a1850a4ae298889170e465a62d73f8',3,2,0,0.0,2577836806000000,0);
INSERT INTO "texts" VALUES(10,1,1,'shift','a7b469094efdf4afe861d63173b3d251','test-1','echo-1',0,'ann moved from (ann likes the a0, the a1) to (ann likes the a2, the a3)','fb7f4a15952d9f1462a7482cf7272188',3,2,0,0.0,2577836811000000,0);
INSERT INTO "texts" VALUES(11,1,2,'shift','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',1,'ann moved from (ann likes the a2, the a3) to (ann likes the a4, the a5)','ee85ea0c3d964260bdd7e592caaaf547',3,2,0,0.0,2577836812000000,0);
INSERT INTO "texts" VALUES(12,2,1,'shift','4219d65db9b7bd5fceec441827a54f8c','test-1','echo-1',0,'bob moved from (bob likes the b0, the b1) to (bob likes the b2, the b3)','312853b86ee52e2c98afee032d167b15',3,2,0,0.0,2577836813000000,0);
INSERT INTO "texts" VALUES(13,2,2,'shift','6553ff6fb381621a595082778d505b34','test-1','echo-1',1,'bob moved from (bob likes the b2, the b3) to (bob likes the b4, the b5)','a112293bdcff12aa03e5243144403150',3,2,0,0.0,2577836814000000,0);
CREATE TABLE tombstones (
	user_hash TEXT NOT NULL, 
	forgotten_time BIGINT NOT NULL, 
	until_time BIGINT NOT NULL, 
	refused_count INTEGER DEFAULT '0' NOT NULL, 
	PRIMARY KEY (user_hash)
);
INSERT INTO "tombstones" VALUES('a4195ac085a6ee927a8f315bd6fed24c',1795902373597819,1795902373597819,0);
CREATE TABLE users (
	user_key INTEGER NOT NULL, 
	user_id TEXT NOT NULL, 
	partition_count INTEGER NOT NULL, 
	sealed_time BIGINT, 
	sealed_behavior_id TEXT, 
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
INSERT INTO "users" VALUES(1,'ann',4,1577836808000000,'000000008',1577836808000001,0,0,9,0,0,1795902373633419,1795902373293609,NULL);
INSERT INTO "users" VALUES(2,'bob',3,1577836805000000,'000000005',1577836805000001,0,0,7,0,0,1795902373293609,1795902373293609,NULL);
INSERT INTO "users" VALUES(3,'forgotten/62f1e357-0101-4d42-8548-7db0911bf641',0,NULL,NULL,NULL,0,0,0,0,0,1795902373293609,1795902373293609,1795902373597819);
INSERT INTO "users" VALUES(4,'dora',1,1577836809000000,'000000009',1577836809000001,0,0,2,0,0,1795902373633419,0,NULL);
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
INSERT INTO "waiting" VALUES(1,2,1795902373293609,0,NULL,NULL,0);
INSERT INTO "waiting" VALUES(2,1,1795902373293609,0,NULL,NULL,0);
INSERT INTO "waiting" VALUES(4,1,1795902373633419,0,NULL,NULL,0);
CREATE INDEX publications_begun ON publications (publication_id) WHERE done_time IS NULL;
CREATE INDEX ix_calls_run_id ON calls (run_id);
CREATE INDEX behaviors_cached ON behaviors (user_key) WHERE partition_index IS NULL;
CREATE INDEX behaviors_by_time ON behaviors (user_key, event_time, behavior_id);
CREATE INDEX partitions_online ON partitions (online_time) WHERE online_time IS NOT NULL;
CREATE INDEX waiting_by_time ON waiting (since);
CREATE INDEX ix_published_publication_id ON published (publication_id);
CREATE INDEX ix_texts_text_hash ON texts (text_hash);
COMMIT;
