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
INSERT INTO "behaviors" VALUES(1,'0000000.5','a',4.0,1577836800500000,1577836809000000,NULL);
INSERT INTO "behaviors" VALUES(1,'000000000','a0',4.0,1577836800000000,1577836800000000,0);
INSERT INTO "behaviors" VALUES(1,'000000001','a1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(1,'000000002','a2',4.0,1577836802000000,1577836802000000,1);
INSERT INTO "behaviors" VALUES(1,'000000003','a3',4.0,1577836803000000,1577836803000000,1);
INSERT INTO "behaviors" VALUES(1,'000000004','a4',4.0,1577836804000000,1577836804000000,2);
INSERT INTO "behaviors" VALUES(1,'000000005','a5',4.0,1577836805000000,1577836805000000,2);
INSERT INTO "behaviors" VALUES(1,'000000006','a6',4.0,1577836806000000,1577836806000000,3);
INSERT INTO "behaviors" VALUES(1,'000000007','ann7',4.0,1577836807000000,1577836807000000,3);
INSERT INTO "behaviors" VALUES(1,'000000008','ann8',4.0,1577836808000000,1577836808000000,4);
INSERT INTO "behaviors" VALUES(1,'000000009','ann9',4.0,1577836809000000,1577836809000000,4);
INSERT INTO "behaviors" VALUES(2,'000000000','b0',4.0,1577836800000000,1577836800000000,0);
INSERT INTO "behaviors" VALUES(2,'000000001','b1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(2,'000000002','b2',4.0,1577836802000000,1577836802000000,1);
INSERT INTO "behaviors" VALUES(2,'000000003','b3',4.0,1577836803000000,1577836803000000,1);
INSERT INTO "behaviors" VALUES(2,'000000004','b4',4.0,1577836804000000,1577836804000000,2);
INSERT INTO "behaviors" VALUES(2,'000000005','b5',4.0,1577836805000000,1577836805000000,2);
INSERT INTO "behaviors" VALUES(2,'000000006','bob6',4.0,1577836806000000,1577836806000000,3);
INSERT INTO "behaviors" VALUES(2,'000000007','bob7',4.0,1577836807000000,1577836807000000,3);
INSERT INTO "behaviors" VALUES(2,'000000008','bob8',4.0,1577836808000000,1577836808000000,4);
INSERT INTO "behaviors" VALUES(2,'000000009','bob9',4.0,1577836809000000,1577836809000000,4);
INSERT INTO "behaviors" VALUES(2,'000000020','bob20',4.0,1577836820000000,1577836820000000,5);
INSERT INTO "behaviors" VALUES(2,'000000021','bob21',4.0,1577836821000000,1577836821000000,5);
INSERT INTO "behaviors" VALUES(2,'000000030','bob30',4.0,1577836830000000,1577836830000000,6);
INSERT INTO "behaviors" VALUES(2,'000000031','bob31',4.0,1577836831000000,1577836831000000,6);
INSERT INTO "behaviors" VALUES(3,'000000001','d1',4.0,1577836801000000,1577836801000000,0);
INSERT INTO "behaviors" VALUES(3,'000000002','d2',4.0,1577836802000000,1577836802000000,0);
INSERT INTO "behaviors" VALUES(4,'000000001','a',4.0,1577836801000000,1577836801000000,NULL);
INSERT INTO "behaviors" VALUES(5,'000000006','Zoë6',4.0,1577836806000000,1577836806000000,0);
INSERT INTO "behaviors" VALUES(5,'000000007','Zoë7',4.0,1577836807000000,1577836807000000,0);
INSERT INTO "behaviors" VALUES(5,'000000008','Zoë8',4.0,1577836808000000,1577836808000000,1);
INSERT INTO "behaviors" VALUES(5,'000000009','Zoë9',4.0,1577836809000000,1577836809000000,1);
CREATE TABLE budget_counters (
	scope TEXT NOT NULL, 
	calls BIGINT NOT NULL, 
	tokens BIGINT NOT NULL, 
	nanodollars BIGINT NOT NULL, 
	PRIMARY KEY (scope)
);
INSERT INTO "budget_counters" VALUES('day/2026-11-20',3,290,340000);
INSERT INTO "budget_counters" VALUES('run/3071ad411bff4ea1a62d17c02ca30335',3,290,340000);
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
INSERT INTO "calls" VALUES(1,'3071ad411bff4ea1a62d17c02ca30335','2026-11-20','ann',0,'summary','tiny-1','test-1','answered',80,10,0,100000,0.5,1795176000000000,1795176000000000);
INSERT INTO "calls" VALUES(2,'3071ad411bff4ea1a62d17c02ca30335','2026-11-20','ann',1,'summary','tiny-1','test-1',NULL,80,20,0,120000,0.0,1795176000000000,NULL);
INSERT INTO "calls" VALUES(3,'3071ad411bff4ea1a62d17c02ca30335','2026-11-20','ann',2,'summary','tiny-1','test-1',NULL,80,20,0,120000,0.0,1795176000000000,NULL);
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
INSERT INTO "partitions" VALUES(1,2,'95ea97ce0151dfa6b15b8099ec51aa25',2,1577836804000000,1577836805000000,1577836805000001,'count(2)',1,NULL,'host/1',1);
INSERT INTO "partitions" VALUES(2,0,'3a65af85dd35838e0c1f9cdf631714c9',2,1577836800000000,1577836801000000,1577836801000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,1,'583d7d36b61bd6375049a01dbe969d1d',2,1577836802000000,1577836803000000,1577836803000001,'count(2)',0,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,2,'6553ff6fb381621a595082778d505b34',2,1577836804000000,1577836805000000,1577836805000001,'count(2)',1,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(3,0,'6c9367e7d1f2c9f19a3947ddb333da41',2,1577836801000000,1577836802000000,1577836802000001,'count(2)',1,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,3,'a1dd248232071ff2b4cb2955e6c18c79',2,1577836806000000,1577836807000000,1577836807000001,'count(2)',3,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(1,4,'22e70aef8fa148e3b9cbfad8aa82e2f5',2,1577836808000000,1577836809000000,1577836809000001,'count(2)',3,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,3,'ab72985a51f547826e76726796cc952e',2,1577836806000000,1577836807000000,1577836807000001,'count(2)',3,'answer cut off at 256 tokens',NULL,NULL);
INSERT INTO "partitions" VALUES(2,4,'1ab766901180deb3066c2e5a83a4420a',2,1577836808000000,1577836809000000,1577836809000001,'count(2)',3,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(5,0,'81a880b398ebe3650af7848c7767f64c',2,1577836806000000,1577836807000000,1577836807000001,'count(2)',2,'answer cut off at 256 tokens',NULL,NULL);
INSERT INTO "partitions" VALUES(5,1,'7cff3b19ed840acf6918ec0bcc0a8612',2,1577836808000000,1577836809000000,1577836809000001,'count(2)',2,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,5,'ac0f4a4eef0c9feeba5dcb71411f5b47',2,1577836820000000,1577836821000000,1577836821000001,'count(2)',2,NULL,NULL,NULL);
INSERT INTO "partitions" VALUES(2,6,'a463b365a1a48baa0c3a6930675acaf6',2,1577836830000000,1577836831000000,1577836831000001,'count(2)',0,NULL,NULL,NULL);
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
INSERT INTO "publications" VALUES(8,'fused',2577836811000000,11577836801000000);
INSERT INTO "publications" VALUES(9,'summary',11577836817000000,11577836818000000);
INSERT INTO "publications" VALUES(10,'shift',11577836817000000,11577836819000000);
INSERT INTO "publications" VALUES(11,'vector',11577836817000000,11577836820000000);
INSERT INTO "publications" VALUES(12,'fused',11577836817000000,11577836821000000);
INSERT INTO "publications" VALUES(13,'summary',11577836826000000,11577836827000000);
INSERT INTO "publications" VALUES(14,'vector',11577836826000000,11577836828000000);
INSERT INTO "publications" VALUES(15,'fused',11577836826000000,11577836829000000);
INSERT INTO "publications" VALUES(16,'summary',11577836839000000,11577836840000000);
INSERT INTO "publications" VALUES(17,'shift',11577836839000000,11577836841000000);
INSERT INTO "publications" VALUES(18,'vector',11577836839000000,11577836842000000);
INSERT INTO "publications" VALUES(19,'fused',11577836839000000,NULL);
CREATE TABLE published (
	stage TEXT NOT NULL, 
	version TEXT NOT NULL, 
	user_key BIGINT NOT NULL, 
	partition_index INTEGER NOT NULL, 
	publication_id BIGINT NOT NULL, text_id BIGINT, index_sum BIGINT, 
	PRIMARY KEY (stage, version, user_key, partition_index), 
	FOREIGN KEY(publication_id) REFERENCES publications (publication_id)
);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,0,1,10,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,1,1,10,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,2,1,10,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,0,1,10,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,1,1,10,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,1,2,10,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,2,2,10,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,1,2,10,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,0,3,10,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,1,3,10,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,2,14,20,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,0,3,10,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,1,3,10,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,0,4,10,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,1,4,10,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,2,15,20,5);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,0,4,10,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,1,4,10,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,2,5,10,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,2,6,10,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,2,18,23,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,2,19,23,5);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,3,9,11,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',1,4,9,12,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,3,9,13,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,4,9,14,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',3,0,9,15,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',5,1,9,16,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,3,10,17,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',1,4,10,18,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,4,10,19,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,3,14,21,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',1,4,18,22,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,3,11,13,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,4,18,24,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',3,0,11,15,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',5,1,18,26,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,3,15,21,7);
INSERT INTO "published" VALUES('fused','0/mean/tiny',1,4,19,22,9);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,3,19,23,7);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,4,19,24,9);
INSERT INTO "published" VALUES('fused','0/mean/tiny',3,0,12,15,1);
INSERT INTO "published" VALUES('fused','0/mean/tiny',5,1,19,26,2);
INSERT INTO "published" VALUES('summary','test-1/echo-1#1',1,2,13,20,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1#1',1,3,13,21,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1#1',1,4,16,22,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1#1',2,2,16,23,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1#1',2,4,16,24,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1',2,5,16,25,NULL);
INSERT INTO "published" VALUES('summary','test-1/echo-1#1',5,1,16,26,NULL);
INSERT INTO "published" VALUES('shift','test-1/echo-1',2,5,17,27,NULL);
INSERT INTO "published" VALUES('vector','0/tiny',2,5,18,27,NULL);
INSERT INTO "published" VALUES('fused','0/mean/tiny',2,5,19,27,11);
CREATE TABLE recomputations (
	user_key BIGINT NOT NULL, 
	partition_index INTEGER NOT NULL, 
	stage TEXT NOT NULL, 
	asked_time BIGINT NOT NULL, 
	PRIMARY KEY (user_key, partition_index, stage), 
	FOREIGN KEY(user_key, partition_index) REFERENCES partitions (user_key, partition_index)
);
INSERT INTO "recomputations" VALUES(2,3,'summary',11577836815000001);
CREATE TABLE runs (
	run_id INTEGER NOT NULL, 
	finished_time BIGINT NOT NULL, 
	report TEXT NOT NULL, 
	PRIMARY KEY (run_id)
);
INSERT INTO "runs" VALUES(1,1577836800000000,'{"summary_count": 5, "shift_count": 3}');
INSERT INTO "runs" VALUES(2,1,'{"seconds": 1.5}');
CREATE TABLE settings (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('memory_id','b97be18ef777484190491b25d0591e03');
INSERT INTO "settings" VALUES('user_id_type','string');
INSERT INTO "settings" VALUES('item_id_type','string');
INSERT INTO "settings" VALUES('vector_in_use','0/tiny');
INSERT INTO "settings" VALUES('fused_in_use','0/mean/tiny');
INSERT INTO "settings" VALUES('schema_version','2');
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
INSERT INTO "text_vectors" VALUES(11,'tiny',X'0000474300005842');
INSERT INTO "text_vectors" VALUES(12,'tiny',X'0000803F00007842');
INSERT INTO "text_vectors" VALUES(13,'tiny',X'0000584200005F43');
INSERT INTO "text_vectors" VALUES(14,'tiny',X'00002A4300004543');
INSERT INTO "text_vectors" VALUES(15,'tiny',X'0000134300001041');
INSERT INTO "text_vectors" VALUES(16,'tiny',X'0000204200005643');
INSERT INTO "text_vectors" VALUES(17,'tiny',X'0000084300000842');
INSERT INTO "text_vectors" VALUES(18,'tiny',X'0000A84200001043');
INSERT INTO "text_vectors" VALUES(19,'tiny',X'0000644300006343');
INSERT INTO "text_vectors" VALUES(20,'tiny',X'0000924200001143');
INSERT INTO "text_vectors" VALUES(21,'tiny',X'0000224300007943');
INSERT INTO "text_vectors" VALUES(22,'tiny',X'0000803F00007842');
INSERT INTO "text_vectors" VALUES(23,'tiny',X'00004C430000B242');
INSERT INTO "text_vectors" VALUES(24,'tiny',X'00002A4300004543');
INSERT INTO "text_vectors" VALUES(25,'tiny',X'0000384300006041');
INSERT INTO "text_vectors" VALUES(26,'tiny',X'0000204200005643');
INSERT INTO "text_vectors" VALUES(27,'tiny',X'0000644300005443');
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
INSERT INTO "texts" VALUES(1,2,1,'summary','583d7d36b61bd6375049a01dbe969d1d','test-1','echo-1',NULL,'bob likes the b2, the b3','090a28a6d5367477e57ff93f0a436aab',3,2,0,0.0,2577836801000000,0);
INSERT INTO "texts" VALUES(2,2,0,'summary','3a65af85dd35838e0c1f9cdf631714c9','test-1','echo-1',NULL,'bob likes the b0, the b1','738602ea12fc156541ce18182188ef22',3,2,0,0.0,2577836802000000,0);
INSERT INTO "texts" VALUES(3,1,2,'summary','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',NULL,'ann likes the a4, the a5','3b59a87221f11cba4dc624e39757468a',3,2,0,0.0,2577836803000000,0);
INSERT INTO "texts" VALUES(4,1,1,'summary','682e63bfa66a6e29eaece955c2ffc9e0','test-1','echo-1',NULL,'ann likes the a2, the a3','7b319041d4bdae8ac717e30b1a6c4b56',3,2,0,0.0,2577836804000000,0);
INSERT INTO "texts" VALUES(5,1,0,'summary','4da15b5d988ecbc74c8654430eb83582','test-1','echo-1',NULL,'ann likes the a0, the a1','727737ed1bf87b90c9d69c86d75387c3',3,2,0,0.0,2577836805000000,0);
INSERT INTO "texts" VALUES(6,1,1,'shift','682e63bfa66a6e29eaece955c2ffc9e0','test-1','echo-1',0,'ann moved from (ann likes the a0, the a1) to (ann likes the a2, the a3)','fb7f4a15952d9f1462a7482cf7272188',3,2,0,0.0,2577836806000000,0);
INSERT INTO "texts" VALUES(7,1,2,'shift','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',1,'ann moved from (ann likes the a2, the a3) to (ann likes the a4, the a5)','ee85ea0c3d964260bdd7e592caaaf547',3,2,0,0.0,2577836807000000,0);
INSERT INTO "texts" VALUES(8,2,1,'shift','583d7d36b61bd6375049a01dbe969d1d','test-1','echo-1',0,'bob moved from (bob likes the b0, the b1) to (bob likes the b2, the b3)','312853b86ee52e2c98afee032d167b15',3,2,0,0.0,2577836808000000,0);
INSERT INTO "texts" VALUES(9,2,2,'summary','6553ff6fb381621a595082778d505b34','test-1','echo-1',NULL,'bob likes the b4, the b5','76a1850a4ae298889170e465a62d73f8',3,2,0,0.0,2577836801000000,0);
INSERT INTO "texts" VALUES(10,2,2,'shift','6553ff6fb381621a595082778d505b34','test-1','echo-1',1,'bob moved from (bob likes the b2, the b3) to (bob likes the b4, the b5)','a112293bdcff12aa03e5243144403150',3,2,0,0.0,2577836802000000,0);
INSERT INTO "texts" VALUES(11,1,3,'summary','a1dd248232071ff2b4cb2955e6c18c79','test-1','echo-1',NULL,'ann likes the a6, the ann7','861be609feb7cd3153d6df26815a311a',3,2,0,0.0,11577836804000000,0);
INSERT INTO "texts" VALUES(12,1,4,'summary','22e70aef8fa148e3b9cbfad8aa82e2f5','test-1','echo-1',NULL,'ann likes the ann8, the ann9','f8f30a5e1eeeaa8e2039969433723af7',3,2,0,0.0,11577836805000000,0);
INSERT INTO "texts" VALUES(13,2,3,'summary','ab72985a51f547826e76726796cc952e','test-1','echo-1',NULL,'bob likes the bob6, the bob7','37d8f0f476f41755e4ce73c3bde75c1c',3,2,0,0.0,11577836806000000,0);
INSERT INTO "texts" VALUES(14,2,4,'summary','1ab766901180deb3066c2e5a83a4420a','test-1','echo-1',NULL,'bob likes the bob8, the bob9','3022c73cde2f1f8932cb351343330e94',3,2,0,0.0,11577836807000000,0);
INSERT INTO "texts" VALUES(15,3,0,'summary','6c9367e7d1f2c9f19a3947ddb333da41','test-1','echo-1',NULL,'dora likes the d1, the d2','d7bb67ef357b7e4910fdec7d2b6a3795',3,2,0,0.0,11577836808000000,0);
INSERT INTO "texts" VALUES(16,5,1,'summary','7cff3b19ed840acf6918ec0bcc0a8612','test-1','echo-1',NULL,'Zoë likes the Zoë8, the Zoë9','bf8ea0d61dc3a7a0618935f2a9e751d0',3,2,0,0.0,11577836810000000,0);
INSERT INTO "texts" VALUES(17,1,3,'shift','a1dd248232071ff2b4cb2955e6c18c79','test-1','echo-1',2,'ann moved from (ann likes the a4, the a5) to (ann likes the a6, the ann7)','7aabf3c4d1120f6b81a61a1f28d3b7be',3,2,0,0.0,11577836812000000,0);
INSERT INTO "texts" VALUES(18,1,4,'shift','22e70aef8fa148e3b9cbfad8aa82e2f5','test-1','echo-1',3,'ann moved from (ann likes the a6, the ann7) to (ann likes the ann8, the ann9)','9d47f397b7ad4dbc1c1d49ec6c5d1235',3,2,0,0.0,11577836813000000,0);
INSERT INTO "texts" VALUES(19,2,4,'shift','1ab766901180deb3066c2e5a83a4420a','test-1','echo-1',3,'bob moved from (bob likes the bob6, the bob7) to (bob likes the bob8, the bob9)','955d630e8c327a450d42f143629d2e61',3,2,0,0.0,11577836815000000,0);
INSERT INTO "texts" VALUES(20,1,2,'summary','95ea97ce0151dfa6b15b8099ec51aa25','test-1','echo-1',NULL,'ann likes the a4, the a5 anew','b7635f547b9901348a8c01deb8b0d320',3,2,0,0.0,11577836823000000,1);
INSERT INTO "texts" VALUES(21,1,3,'summary','a1dd248232071ff2b4cb2955e6c18c79','test-1','echo-1',NULL,'ann likes the a6, the ann7 anew','1d3b4bd0b142dfc252928e7c15edf8db',3,2,0,0.0,11577836824000000,1);
INSERT INTO "texts" VALUES(22,1,4,'summary','22e70aef8fa148e3b9cbfad8aa82e2f5','test-1','echo-1',NULL,'ann likes the ann8, the ann9','f8f30a5e1eeeaa8e2039969433723af7',3,2,0,0.0,11577836831000000,1);
INSERT INTO "texts" VALUES(23,2,2,'summary','6553ff6fb381621a595082778d505b34','test-1','echo-1',NULL,'bob likes the b4, the b5','76a1850a4ae298889170e465a62d73f8',3,2,0,0.0,11577836832000000,1);
INSERT INTO "texts" VALUES(24,2,4,'summary','1ab766901180deb3066c2e5a83a4420a','test-1','echo-1',NULL,'bob likes the bob8, the bob9','3022c73cde2f1f8932cb351343330e94',3,2,0,0.0,11577836833000000,1);
INSERT INTO "texts" VALUES(25,2,5,'summary','ac0f4a4eef0c9feeba5dcb71411f5b47','test-1','echo-1',NULL,'bob likes the bob20, the bob21','f22304f39e4133523bd643ada07d1d74',3,2,0,0.0,11577836834000000,0);
INSERT INTO "texts" VALUES(26,5,1,'summary','7cff3b19ed840acf6918ec0bcc0a8612','test-1','echo-1',NULL,'Zoë likes the Zoë8, the Zoë9','bf8ea0d61dc3a7a0618935f2a9e751d0',3,2,0,0.0,11577836835000000,1);
INSERT INTO "texts" VALUES(27,2,5,'shift','ac0f4a4eef0c9feeba5dcb71411f5b47','test-1','echo-1',4,'bob moved from (bob likes the bob8, the bob9) to (bob likes the bob20, the bob21)','3842dc14365eeeda42309b9a79fe1b58',3,2,0,0.0,11577836837000000,0);
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
INSERT INTO "users" VALUES(1,'ann',5,1577836809000000,'000000009',1577836809000001,1,1,0);
INSERT INTO "users" VALUES(2,'bob',7,1577836831000000,'000000031',1577836831000001,0,1,1);
INSERT INTO "users" VALUES(3,'dora',1,1577836802000000,'000000002',1577836802000001,0,0,0);
INSERT INTO "users" VALUES(4,'cid',0,NULL,NULL,NULL,0,0,0);
INSERT INTO "users" VALUES(5,'Zoë',2,1577836809000000,'000000009',1577836809000001,0,0,0);
CREATE INDEX behaviors_by_partition ON behaviors (user_key, partition_index);
CREATE INDEX behaviors_by_time ON behaviors (user_key, event_time, behavior_id);
CREATE INDEX ix_published_publication_id ON published (publication_id);
CREATE INDEX ix_texts_text_hash ON texts (text_hash);
CREATE INDEX ix_calls_run_id ON calls (run_id);
COMMIT;
