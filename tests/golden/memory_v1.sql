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
INSERT INTO "behaviors" VALUES(1,'000000000','a0',4.0,1577836800000000,1577836800000000,0);
INSERT INTO "behaviors" VALUES(1,'000000001','a1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(1,'000000002','a2',4.0,1577836802000000,1577836802000000,1);
INSERT INTO "behaviors" VALUES(1,'000000003','a3',4.0,1577836803000000,1577836803000000,1);
INSERT INTO "behaviors" VALUES(1,'000000004','a4',4.0,1577836804000000,1577836804000000,2);
INSERT INTO "behaviors" VALUES(1,'000000005','a5',4.0,1577836805000000,1577836805000000,2);
INSERT INTO "behaviors" VALUES(1,'000000006','a6',4.0,1577836806000000,1577836806000000,NULL);
INSERT INTO "behaviors" VALUES(2,'000000000','b0',4.0,1577836800000000,1577836800000000,0);
INSERT INTO "behaviors" VALUES(2,'000000001','b1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(2,'000000002','b2',4.0,1577836802000000,1577836802000000,1);
INSERT INTO "behaviors" VALUES(2,'000000003','b3',4.0,1577836803000000,1577836803000000,1);
INSERT INTO "behaviors" VALUES(2,'000000004','b4',4.0,1577836804000000,1577836804000000,2);
INSERT INTO "behaviors" VALUES(2,'000000005','b5',4.0,1577836805000000,1577836805000000,2);
INSERT INTO "behaviors" VALUES(3,'000000001','d1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(3,'000000002','d2',4.0,1577836802000000,1577836802000000,0);
INSERT INTO "behaviors" VALUES(4,'000000001','a',4.0,1577836801000000,1577836801000000,NULL);
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
	lease_owner TEXT, 
	lease_until BIGINT, 
	PRIMARY KEY (user_key, partition_index), 
	FOREIGN KEY(user_key) REFERENCES users (user_key)
);
INSERT INTO "partitions" VALUES(1,0,'4da15b5d988ecbc74c8654430eb83582',2,1577836800000000,1577836801000000,1577836801000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,1,'682e63bfa66a6e29eaece955c2ffc9e0',2,1577836802000000,1577836803000000,1577836803000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,2,'95ea97ce0151dfa6b15b8099ec51aa25',2,1577836804000000,1577836805000000,1577836805000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,0,'3a65af85dd35838e0c1f9cdf631714c9',2,1577836800000000,1577836801000000,1577836801000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,1,'583d7d36b61bd6375049a01dbe969d1d',2,1577836802000000,1577836803000000,1577836803000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,2,'6553ff6fb381621a595082778d505b34',2,1577836804000000,1577836805000000,1577836805000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(3,0,'6c9367e7d1f2c9f19a3947ddb333da41',2,1577836801000000,1577836802000000,1577836802000001,'count(2)',0,NULL,NULL,NULL);
CREATE TABLE publications (
	publication_id INTEGER NOT NULL, 
	stage TEXT NOT NULL, 
	created_time BIGINT NOT NULL, 
	done_time BIGINT, 
	PRIMARY KEY (publication_id)
);
INSERT INTO "publications" VALUES(1,'summary',2577836805000000,2577836806000000);
INSERT INTO "publications" VALUES(2,'shift',2577836805000000,2577836807000000);
INSERT INTO "publications" VALUES(3,'vector',2577836805000000,2577836808000000);
INSERT INTO "publications" VALUES(4,'fused',2577836805000000,2577836809000000);
INSERT INTO "publications" VALUES(5,'summary',2577836811000000,2577836812000000);
INSERT INTO "publications" VALUES(6,'shift',2577836811000000,2577836813000000);
INSERT INTO "publications" VALUES(7,'vector',2577836811000000,2577836814000000);
INSERT INTO "publications" VALUES(8,'fused',2577836811000000,NULL);
CREATE TABLE published (
	stage TEXT NOT NULL, 
	version TEXT NOT NULL, 
	user_key BIGINT NOT NULL, 
	partition_index INTEGER NOT NULL, 
	publication_id BIGINT NOT NULL, 
	PRIMARY KEY (stage, version, user_key, partition_index), 
	FOREIGN KEY(publication_id) REFERENCES publications (publication_id)
);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,0,1);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,1,1);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,2,1);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,0,1);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,1,1);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,1,2);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,2,2);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,1,2);
INSERT INTO "published" VALUES('vector','0/tiny',1,0,3);
INSERT INTO "published" VALUES('vector','0/tiny',1,1,3);
INSERT INTO "published" VALUES('vector','0/tiny',1,2,3);
INSERT INTO "published" VALUES('vector','0/tiny',2,0,3);
INSERT INTO "published" VALUES('vector','0/tiny',2,1,3);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,0,4);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,1,4);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,2,4);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,0,4);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,1,4);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,2,5);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,2,6);
INSERT INTO "published" VALUES('vector','0/tiny',2,2,7);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,2,8);
CREATE TABLE runs (
	run_id INTEGER NOT NULL, 
	finished_time BIGINT NOT NULL, 
	report TEXT NOT NULL, 
	PRIMARY KEY (run_id)
);
INSERT INTO "runs" VALUES(1,1577836800000000,'{"summary_count": 5, "shift_count": 3}');
CREATE TABLE settings (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('memory_id','b97be18ef777484190491b25d0591e03');
INSERT INTO "settings" VALUES('schema_version','1');
INSERT INTO "settings" VALUES('user_id_type','string');
INSERT INTO "settings" VALUES('item_id_type','string');
INSERT INTO "settings" VALUES('vector_in_use','0/tiny');
INSERT INTO "settings" VALUES('fused_in_use','0/mean/tiny');
ANALYZE "sqlite_master";
INSERT INTO "sqlite_stat1" VALUES('behaviors','behaviors','1000000 1000 1');
INSERT INTO "sqlite_stat1" VALUES('behaviors','behaviors_by_partition','1000000 1000 20');
INSERT INTO "sqlite_stat1" VALUES('behaviors','behaviors_by_time','1000000 1000 1 1');
CREATE TABLE text_vectors (
	text_id BIGINT NOT NULL, 
	encoder_version TEXT NOT NULL, 
	vector BLOB NOT NULL, 
	PRIMARY KEY (text_id, encoder_version), 
	FOREIGN KEY(text_id) REFERENCES texts (text_id)
);
INSERT INTO "text_vectors" VALUES(1,'tiny',X'0000803F000080BF');
INSERT INTO "text_vectors" VALUES(2,'tiny',X'00000040000000C0');
INSERT INTO "text_vectors" VALUES(3,'tiny',X'00004040000040C0');
INSERT INTO "text_vectors" VALUES(4,'tiny',X'00008040000080C0');
INSERT INTO "text_vectors" VALUES(5,'tiny',X'0000A0400000A0C0');
INSERT INTO "text_vectors" VALUES(6,'tiny',X'0000C0400000C0C0');
INSERT INTO "text_vectors" VALUES(7,'tiny',X'0000E0400000E0C0');
INSERT INTO "text_vectors" VALUES(8,'tiny',X'00000041000000C1');
INSERT INTO "text_vectors" VALUES(9,'tiny',X'00001041000010C1');
INSERT INTO "text_vectors" VALUES(10,'tiny',X'00002041000020C1');
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
	PRIMARY KEY (text_id), 
	FOREIGN KEY(user_key, partition_index) REFERENCES partitions (user_key, partition_index), 
	UNIQUE (user_key, partition_index, stage, partition_hash, prompt_version, model)
);
INSERT INTO "texts" VALUES(1,2,1,'summary','583d7d36b61bd6375049a01dbe969d1d','test-1','echo-1',NULL,'bob likes the b2, the b3','090a28a6d5367477e57ff93f0a436aab',3,2,0,0.0,2577836801000000);
INSERT INTO "texts" VALUES(2,2,0,'summary','3a65af85dd35838e0c1f9cdf631714c9','test-1','echo-1',NULL,'bob likes the b0, the b1','738602ea12fc156541ce18182188ef22',3,2,0,0.0,2577836802000000);
INSERT INTO "texts" VALUES(3,1,2,'summary','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',NULL,'ann likes the a4, the a5','3b59a87221f11cba4dc624e39757468a',3,2,0,0.0,2577836803000000);
INSERT INTO "texts" VALUES(4,1,1,'summary','682e63bfa66a6e29eaece955c2ffc9e0','test-1','echo-1',NULL,'ann likes the a2, the a3','7b319041d4bdae8ac717e30b1a6c4b56',3,2,0,0.0,2577836804000000);
INSERT INTO "texts" VALUES(5,1,0,'summary','4da15b5d988ecbc74c8654430eb83582','test-1','echo-1',NULL,'ann likes the a0, the a1','727737ed1bf87b90c9d69c86d75387c3',3,2,0,0.0,2577836805000000);
INSERT INTO "texts" VALUES(6,1,1,'shift','682e63bfa66a6e29eaece955c2ffc9e0','test-1','echo-1',0,'ann moved from (ann likes the a0, the a1) to (ann likes the a2, the a3)','fb7f4a15952d9f1462a7482cf7272188',3,2,0,0.0,2577836806000000);
INSERT INTO "texts" VALUES(7,1,2,'shift','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',1,'ann moved from (ann likes the a2, the a3) to (ann likes the a4, the a5)','ee85ea0c3d964260bdd7e592caaaf547',3,2,0,0.0,2577836807000000);
INSERT INTO "texts" VALUES(8,2,1,'shift','583d7d36b61bd6375049a01dbe969d1d','test-1','echo-1',0,'bob moved from (bob likes the b0, the b1) to (bob likes the b2, the b3)','312853b86ee52e2c98afee032d167b15',3,2,0,0.0,2577836808000000);
INSERT INTO "texts" VALUES(9,2,2,'summary','6553ff6fb381621a595082778d505b34','test-1','echo-1',NULL,'bob likes the b4, the b5','76a1850a4ae298889170e465a62d73f8',3,2,0,0.0,2577836801000000);
INSERT INTO "texts" VALUES(10,2,2,'shift','6553ff6fb381621a595082778d505b34','test-1','echo-1',1,'bob moved from (bob likes the b2, the b3) to (bob likes the b4, the b5)','a112293bdcff12aa03e5243144403150',3,2,0,0.0,2577836802000000);
CREATE TABLE users (
	user_key INTEGER NOT NULL, 
	user_id TEXT NOT NULL, 
	partition_count INTEGER NOT NULL, 
	sealed_time BIGINT, 
	sealed_behavior_id TEXT, 
	seal_time BIGINT, 
	late_count INTEGER NOT NULL, 
	duplicate_count INTEGER NOT NULL, 
	is_sequence_stale BOOLEAN NOT NULL, 
	PRIMARY KEY (user_key), 
	UNIQUE (user_id)
);
INSERT INTO "users" VALUES(1,'ann',3,1577836805000000,'000000005',1577836805000001,0,0,0);
INSERT INTO "users" VALUES(2,'bob',3,1577836805000000,'000000005',1577836805000001,0,0,1);
INSERT INTO "users" VALUES(3,'dora',1,1577836802000000,'000000002',1577836802000001,0,0,1);
INSERT INTO "users" VALUES(4,'cid',0,NULL,NULL,NULL,0,0,1);
CREATE INDEX behaviors_by_partition ON behaviors (user_key, partition_index);
CREATE INDEX behaviors_by_time ON behaviors (user_key, event_time, behavior_id);
CREATE INDEX ix_published_publication_id ON published (publication_id);
CREATE INDEX ix_texts_text_hash ON texts (text_hash);
COMMIT;
